"use strict";
// Draws a run's charts from the page's JSON, with what page.js gives.
(() => {
  const { data, colour, plain, faded } = page;
  const markSymbols = { skip: "x", restore: "triangle-left", resume: "circle-open" };
  const markNames = { skip: "skipped step", restore: "restored", resume: "resumed" };
  // Beyond this many, vertical lines hide the curve that they should explain.
  const mostLines = 24;

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
    const base = page.layout(axis);
    const y = { ...base.yaxis, type: chart.log ? "log" : "linear", rangemode: chart.fromZero ? "tozero" : "normal" };
    if (chart.percent) y.tickformat = ".1~%";
    // Spelled out, since Plotly writes 0.5 as a mere "5" between two powers of ten.
    if (chart.log) { y.dtick = "D2"; y.tickformat = ".3~g"; }
    return {
      ...base, showlegend: chart.wide, xaxis: page.position(axis), yaxis: y, shapes: lines(chart, axis),
      annotations: chart.level ? [{ xref: "paper", x: 0.02, xanchor: "left", y: chart.level.y, yanchor: "bottom", showarrow: false, text: chart.level.name,
        font: { color: colour("plan"), size: 11 } }] : [],
    };
  }

  page.start((axis) => {
    for (const chart of data.charts) {
      const traces = chart.series.map((series) => trace(series, axis, chart)).concat(markTraces(chart, axis));
      page.show(chart, traces, layout(chart, axis));
    }
  });
})();
