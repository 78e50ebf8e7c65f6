"use strict";
// Draws a comparison's charts from the page's JSON, with what page.js gives, and makes its tables sortable.
(() => {
  const { data, colour, plain, faded } = page;
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash"];
  const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "pentagon", "hexagram", "star-square"];
  const verdictColours = { better: "good", worse: "held", tied: "train", undecided: "plan", failed: "bad" };
  const hue = (series) => colour("arm-" + series.hue);
  const dash = (series) => dashes[series.dash % dashes.length];
  const narrow = () => document.documentElement.clientWidth < 600;
  const own = "<extra>%{fullData.name}</extra>";
  // The reader's choice of arms survives a change of the axis.
  const legend = (base) => ({ ...base.legend, uirevision: "arms", font: { ...base.legend.font, size: narrow() ? 11 : 12 } });

  function meanTraces(series, axis) {
    const line = series.along[axis];
    const common = { type: "scatter", name: plain(series.name), legendgroup: "arm" + series.arm };
    const several = series.seeds > 1;
    const text = line.low.map((low, i) => (several ? " (" + low.toFixed(4) + " to " + line.high[i].toFixed(4) + ")" : ""));
    const mean = { ...common, x: line.x, y: line.y, text, mode: "lines+markers", hovertemplate: "%{y:.4f}%{text}" + own,
      line: { color: hue(series), width: series.arm === 0 ? 2.5 : 2, dash: dash(series) }, marker: { size: 4, color: hue(series) } };
    const band = { ...common, x: line.x.concat(line.x.toReversed()), y: line.high.concat(line.low.toReversed()), mode: "lines",
      fill: "toself", fillcolor: faded(hue(series), 0.18), line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    const failed = series.failed.filter((run) => run[axis].x.length).flatMap((run, i) => [
      { ...common, name: plain(series.name) + " (failed)", x: run[axis].x, y: run[axis].y, mode: "lines", hoverinfo: "skip",
        line: { color: hue(series), width: 1.5, dash: "dot" }, showlegend: !series.seeds && i === 0 },
      { ...common, x: run[axis].x.slice(-1), y: run[axis].y.slice(-1), mode: "markers", showlegend: false,
        text: ["seed " + plain(run.seed) + " failed"], hovertemplate: "%{y:.4f}, %{text}" + own,
        marker: { color: colour("bad"), symbol: "x", size: 8 } }]);
    return (several ? [band] : []).concat(series.seeds ? [mean] : [], failed);
  }

  function curves(chart, axis) {
    const base = page.layout(axis);
    const y = { ...base.yaxis, range: chart.focus || undefined, autorange: chart.focus ? false : true, tickformat: ".3~f" };
    // Seconds differ from arm to arm, so there is no common place to read all of them at.
    return [chart.series.flatMap((series) => meanTraces(series, axis)), { ...base, showlegend: true, legend: legend(base),
      hovermode: axis === "seconds" || chart.series.length > 8 ? "closest" : "x unified", xaxis: page.position(axis), yaxis: y }];
  }

  function differences(chart) {
    const base = page.layout(""), last = chart.series.length - 1;
    // The first arm stands at the top.
    const height = (i) => last - i;
    const traces = chart.series.map((series, i) => ({
      name: plain(series.name), type: "scatter", mode: "markers", showlegend: false,
      x: series.dots, y: series.dots.map(() => height(i)), text: series.seeds.map(plain), hovertemplate: "seed %{text}: %{x:+.4f}" + own,
      marker: { size: 8, color: faded(colour(verdictColours[series.verdict] || "muted"), 0.35) } }));
    chart.series.forEach((series, i) => {
      if (series.mean === null) return;
      const drawn = colour(verdictColours[series.verdict] || "muted"), known = series.low !== null && series.high !== null;
      traces.push({ name: plain(series.name), type: "scatter", mode: "markers", showlegend: false, x: [series.mean], y: [height(i)],
        text: [known ? " (" + series.low.toFixed(4) + " to " + series.high.toFixed(4) + ")" : " (one seed)"],
        hovertemplate: "%{x:+.4f}%{text}, " + plain(series.verdict) + own, marker: { size: 11, color: drawn, symbol: "diamond" },
        error_x: known ? { type: "data", symmetric: false, array: [series.high - series.mean], arrayminus: [series.mean - series.low],
          color: drawn, thickness: 2, width: 6 } : undefined });
    });
    const shapes = [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0, layer: "below", line: { color: colour("muted"), width: 1.5 } }];
    if (chart.margin) {
      shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: -chart.margin, x1: chart.margin, layer: "below",
        fillcolor: faded(colour("train"), 0.12), line: { width: 0 } });
    }
    // Names stand above their intervals, so that a long one takes no room from them. Plotly reads labels as markup.
    const shortened = (name) => (name.length > (narrow() ? 34 : 90) ? name.slice(0, narrow() ? 33 : 89) + "…" : name);
    const annotations = chart.series.map((series, i) => ({ xref: "paper", x: 0, xanchor: "left", y: height(i), yshift: 17, showarrow: false,
      text: plain(shortened(series.name)) + "  <b>" + plain(series.verdict) + "</b>",
      font: { size: 12, color: colour(verdictColours[series.verdict] || "muted") } }));
    return [traces, { ...base, uirevision: "differences", showlegend: false, shapes, annotations,
      xaxis: { ...base.xaxis, title: page.titled("difference in bits per byte"), tickformat: "+.3~f", nticks: narrow() ? 5 : 9 },
      yaxis: { ...base.yaxis, range: [-0.5, last + 0.75], showticklabels: false, showgrid: false, fixedrange: true },
      margin: { ...base.margin, l: 14, r: 36 } }];
  }

  function tuning(chart) {
    const base = page.layout("");
    const heights = chart.series.flatMap((series) => series.trials.map((trial) => trial.y)).filter((y) => y !== null);
    const floor = heights.length ? Math.min(...heights) : 0, top = chart.top === null ? 1 : chart.top;
    // Off the scale, at the upper edge: trials that failed and trials far above the others.
    const edge = top + 0.08 * (top - floor || 1);
    const symbol = (trial, series) => (trial.y === null ? "x" : trial.won ? "star" : trial.y > top ? "triangle-up" : symbols[series.arm % symbols.length]);
    const traces = chart.series.map((series) => ({
      name: plain(series.name), type: "scatter", mode: "markers", x: series.trials.map((trial) => trial.x),
      y: series.trials.map((trial) => (trial.y === null || trial.y > top ? edge : trial.y)),
      text: series.trials.map((trial) => (trial.y === null ? "failed" : trial.y.toFixed(4)) + (trial.won ? ", winner" : "") + "<br>" + plain(trial.text)),
      hovertemplate: "%{text}" + own,
      marker: { opacity: 1, color: series.trials.map((trial) => (trial.y === null ? colour("bad") : hue(series))),
        symbol: series.trials.map((trial) => symbol(trial, series)), size: series.trials.map((trial) => (trial.won ? 13 : 8)),
        line: { width: series.trials.map((trial) => (trial.won ? 1.5 : 0)), color: colour("ink") } } }));
    const type = chart.log ? "log" : chart.numeric ? "linear" : "category";
    // The legend's sample shows the arm's own mark, not its first trial's.
    const keys = chart.series.map((series) => ({ name: plain(series.name), type: "scatter", mode: "markers", x: [null], y: [null], legendgroup: "arm" + series.arm,
      hoverinfo: "skip", marker: { opacity: 1, color: hue(series), size: 8, symbol: symbols[series.arm % symbols.length] } }));
    for (const [i, trace] of traces.entries()) { trace.legendgroup = "arm" + chart.series[i].arm; trace.showlegend = false; }
    return [traces.concat(keys), { ...base, uirevision: "tuning", showlegend: chart.series.length > 1, legend: legend(base),
      xaxis: { ...base.xaxis, type, nticks: 6, title: page.titled(plain(chart.title)), ...(chart.log ? { dtick: "D2", tickformat: ".3~g" } : {}) },
      yaxis: { ...base.yaxis, tickformat: ".3~f" } }];
  }

  function profile(chart) {
    const base = page.layout("");
    const traces = chart.series.map((series) => ({ name: plain(series.name), type: "scatter", mode: "lines", x: chart.x, y: series.y,
      line: { shape: "hv", width: 2, color: hue(series), dash: dash(series) }, hovertemplate: "%{y:.0%}" + own }));
    return [traces, { ...base, uirevision: "profile", showlegend: true, legend: legend(base), hovermode: "x unified",
      xaxis: { ...base.xaxis, title: page.titled("times what the fastest needs") }, yaxis: { ...base.yaxis, tickformat: ".0%", range: [-0.02, 1.05] } }];
  }

  const kinds = { curves, differences, tuning, profile };
  page.start((axis) => {
    for (const chart of data.charts) page.show(chart, ...kinds[chart.kind](chart, axis));
  });

  // A number where one is given, else the text; a cell without either goes last in both directions.
  function order(cell) {
    const given = cell.dataset.order === undefined ? cell.firstChild?.textContent.trim() ?? "" : cell.dataset.order;
    const number = Number(given.replaceAll(",", ""));
    return given === "" || given === "—" ? null : Number.isNaN(number) ? given : number;
  }

  function before(a, b) {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    if (typeof a === "number") return a - b;
    return a.localeCompare(b, undefined, { numeric: true });
  }

  function sort(table, column, direction) {
    const rows = Array.from(table.tBodies[0].rows).map((row) => [order(row.cells[column]), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : direction * before(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        sort(table, column, direction);
      });
    });
  }
})();
