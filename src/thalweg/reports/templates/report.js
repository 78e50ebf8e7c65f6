"use strict";
// Draws the charts from the page's JSON. Foreign text reaches Plotly only through `plain`, since Plotly's labels
// understand a little HTML; nothing here writes HTML.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const axisTitles = { steps: "steps", tokens: "tokens", seconds: "seconds" };
  const markSymbols = { skip: "x", restore: "triangle-left", resume: "circle-open" };
  const markNames = { skip: "skipped step", restore: "restored", resume: "resumed" };
  // Beyond this many, vertical lines hide the curve that they should explain.
  const mostLines = 24;
  const paperWidth = 660;
  const root = document.documentElement;
  const touch = matchMedia("(pointer: coarse)").matches;
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const faded = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");

  // Small charts show what happened by vertical lines only.
  const symbolled = (chart) => chart.wide || chart.log;

  function trace(series, axis, chart) {
    const base = { name: series.name, x: series[axis], y: series.y, type: "scatter", connectgaps: false };
    base.hovertemplate = "%{y:" + (chart.percent ? ".1%" : ".5~g") + "}<extra>" + plain(series.name) + "</extra>";
    const hue = colour(series.role);
    const bars = series.low && {
      type: "data", symmetric: false, color: hue, thickness: 1.5, width: 4,
      array: series.high.map((high, i) => (high === null ? 0 : Math.max(0, high - series.y[i]))),
      arrayminus: series.low.map((low, i) => (low === null ? 0 : Math.max(0, series.y[i] - low))),
    };
    if (series.kind === "band") {
      const text = series.low.map((low, i) => low.toPrecision(5) + " to " + series.high[i].toPrecision(5));
      return { ...base, mode: "lines", fill: "toself", fillcolor: faded(hue, 0.25), line: { width: 0 }, hoveron: "points",
        x: series[axis].concat(series[axis].toReversed()), y: series.high.concat(series.low.toReversed()),
        text: text.concat(text.toReversed()), hovertemplate: "%{text}<extra>" + plain(series.name) + "</extra>" };
    }
    if (series.kind === "points") {
      const many = series.y.length > 400;
      return { ...base, mode: "markers", marker: { color: faded(hue, many ? 0.4 : 0.5), size: many ? 3.5 : 4.5 } };
    }
    if (series.kind === "line") return { ...base, mode: "lines", line: { color: hue, width: 2 } };
    if (series.kind === "forecast") {
      return { ...base, mode: "markers", marker: { color: hue, size: 11, symbol: "diamond-open", line: { width: 2 } }, error_y: bars };
    }
    return { ...base, mode: "lines+markers", line: { color: hue, width: 2 }, marker: { color: hue, size: 6 }, error_y: bars };
  }

  function markTraces(chart, axis) {
    const marks = chart.marks;
    if (!marks || !symbolled(chart)) return [];
    return Object.keys(markNames).filter((kind) => marks.kinds.includes(kind)).map((kind) => {
      const chosen = marks.kinds.map((value, i) => (value === kind ? i : -1)).filter((i) => i >= 0);
      return {
        name: markNames[kind], type: "scatter", mode: "markers",
        x: chosen.map((i) => marks[axis][i]), y: chosen.map((i) => marks.y[i]),
        text: chosen.map((i) => plain(marks.texts[i])),
        hovertemplate: "%{text}<extra>" + markNames[kind] + "</extra>",
        marker: { color: colour("bad"), size: 9, symbol: markSymbols[kind], line: { width: 2, color: colour("bad") } },
      };
    });
  }

  function lines(chart, axis) {
    const drawn = [];
    if (chart.level) {
      drawn.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: chart.level.y, y1: chart.level.y,
        line: { color: colour("plan"), width: 1.5, dash: "dash" } });
    }
    const marks = chart.marks ? chart.marks[axis].filter((x) => x !== null) : [];
    for (const x of marks.length <= mostLines ? marks : []) {
      drawn.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, layer: "below",
        line: { color: faded(colour("bad"), 0.5), width: 1, dash: "dot" } });
    }
    return drawn;
  }

  function layout(chart, axis) {
    const ink = colour("ink"), muted = colour("muted"), grid = colour("grid");
    const scale = { gridcolor: grid, linecolor: colour("line"), zeroline: false, tickfont: { color: muted }, automargin: true };
    const y = { ...scale, type: chart.log ? "log" : "linear", rangemode: chart.fromZero ? "tozero" : "normal", nticks: 6 };
    if (chart.percent) y.tickformat = ".1~%";
    // Spelled out, since Plotly writes 0.5 as a mere "5" between two powers of ten.
    if (chart.log) { y.dtick = "D2"; y.tickformat = ".3~g"; }
    return {
      // The browser lays out the sheet of paper after the charts are drawn, so their width there is fixed beforehand.
      ...(root.dataset.theme ? { width: paperWidth } : { autosize: true }),
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 44, r: 14, t: 8, b: 40 }, hovermode: "closest",
      // A zoom survives a change of theme, but not of the axis.
      uirevision: axis + logarithmic.checked,
      // A finger that moves over a chart wants to scroll the page.
      dragmode: touch ? false : "zoom",
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: ink } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12, color: muted }, bgcolor: "rgba(0,0,0,0)", itemsizing: "constant" },
      showlegend: chart.wide,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink, orientation: "v" },
      xaxis: { ...scale, title: { text: axisTitles[axis], font: { color: muted }, standoff: 6 },
        type: logarithmic.checked ? "log" : "linear", rangemode: logarithmic.checked ? "normal" : "tozero", nticks: 8 },
      yaxis: y, shapes: lines(chart, axis),
      annotations: chart.level ? [{ xref: "paper", x: 0.02, xanchor: "left", y: chart.level.y, yanchor: "bottom", showarrow: false, text: chart.level.name,
        font: { color: colour("plan"), size: 11 } }] : [],
    };
  }

  const config = {
    responsive: true, displaylogo: false,
    // Plotly offers to upload a chart to its maker's service; a report stays where it is.
    showSendToCloud: false, plotlyServerURL: "", topojsonURL: "about:blank",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d"],
    displayModeBar: touch ? false : "hover",
    toImageButtonOptions: { format: "svg" },
  };
  const options = Array.from(document.querySelectorAll('input[name="axis"]'));
  const logarithmic = document.getElementById("logarithmic");
  const current = () => options.find((option) => option.checked).value;

  function draw() {
    const axis = current();
    for (const chart of data.charts) {
      const place = document.getElementById("chart-" + chart.id);
      if (!place) continue;
      const traces = chart.series.map((series) => trace(series, axis, chart)).concat(markTraces(chart, axis));
      Plotly.react(place, traces, layout(chart, axis), config);
    }
    root.dataset.axis = axis;
  }

  function choose(axis) {
    const option = options.find((candidate) => candidate.value === axis);
    if (option) { option.checked = true; draw(); }
    return Boolean(option);
  }

  for (const option of options) {
    option.addEventListener("change", () => {
      draw();
      try { history.replaceState(null, "", "#" + option.value); } catch { /* some viewers forbid it */ }
    });
  }
  logarithmic.addEventListener("change", draw);
  addEventListener("hashchange", () => choose(location.hash.slice(1)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  let opened = [];
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    for (const details of opened) details.open = true;
    draw();
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    for (const details of opened) details.open = false;
    draw();
  });

  const button = document.getElementById("copy");
  if (button) {
    button.addEventListener("click", async () => {
      const source = document.getElementById("command");
      let copied = true;
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        // Without a secure context the old way still works: select, then copy.
        getSelection().selectAllChildren(source);
        copied = document.execCommand("copy");
      }
      button.textContent = copied ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  if (!choose(location.hash.slice(1))) draw();
})();
