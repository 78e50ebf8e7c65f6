"use strict";
// What every page's script uses: colours, the charts' common look, the switch of the axis, printing, copying.
// Foreign text reaches Plotly only through `plain`, since Plotly's labels understand a little HTML and look for TeX
// between dollars; nothing here or in the pages' scripts writes HTML.
const page = (() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const paperWidth = 660;
  const root = document.documentElement;
  const touch = matchMedia("(pointer: coarse)").matches;
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
  const faded = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");

  const options = Array.from(document.querySelectorAll('input[name="axis"]'));
  const logarithmic = document.getElementById("logarithmic");
  const current = () => options.find((option) => option.checked).value;
  const scale = () => ({ gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false,
    tickfont: { color: colour("muted") }, automargin: true });
  const titled = (text) => ({ text, font: { color: colour("muted") }, standoff: 6 });

  // The horizontal axis of a chart over the course of a run.
  function position(axis) {
    return { ...scale(), title: titled(axis), type: logarithmic.checked ? "log" : "linear",
      rangemode: logarithmic.checked ? "normal" : "tozero", nticks: 8 };
  }

  function layout(axis) {
    const ink = colour("ink"), muted = colour("muted");
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
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink, orientation: "v" },
      xaxis: { ...scale(), nticks: 8 }, yaxis: { ...scale(), nticks: 6 },
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

  function show(chart, traces, frame) {
    const place = document.getElementById("chart-" + chart.id);
    if (place) Plotly.react(place, traces, frame, config);
  }

  // Draws now, and again when the axis, the theme or the medium changes. `drawAll` is given the chosen axis.
  function start(drawAll) {
    function draw() {
      drawAll(current());
      root.dataset.axis = current();
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
  }

  return { data, colour, plain, faded, scale, titled, position, layout, show, start };
})();
