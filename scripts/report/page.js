"use strict";
// Draws the figures in the page's colours and redraws them when a control or the colour scheme
// changes. scripts/report/figures.py lists what a trace's `meta` may hold.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 700px)");
  const xTitles = {
    step: "optimizer steps",
    tokens: "training tokens",
    hours: "wall-clock time (hours)",
  };

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Values of the page's controls and of those of one figure.
  const selection = (element) => {
    const chosen = {};
    for (const select of document.querySelectorAll("main > section > .controls select")) {
      chosen[select.dataset.control] = select.value;
    }
    for (const select of element.querySelectorAll("select")) {
      chosen[select.dataset.control] = select.value;
    }
    return chosen;
  };

  const shown = (trace, chosen) =>
    Object.entries((trace.meta && trace.meta.when) || {}).every(
      ([control, value]) => !(control in chosen) || chosen[control] === value);

  // The logarithms of the weights of an attention map, and what to say of each cell.
  const decoded = (codes, names) => {
    const bytes = atob(codes), size = names.length;
    const z = [], customdata = [];
    for (let i = 0; i < size; i++) {
      z.push([]);
      customdata.push([]);
      for (let j = 0; j < size; j++) {
        const code = bytes.charCodeAt(i * size + j);
        const log = code === 0 ? -4 : (code - 255) * 4 / 254;
        const weight = code === 0 ? "< 0.0001" : (10 ** log).toPrecision(2);
        const column = j <= i ? names[j] : `pseudo slot ${j}`;
        z[i].push(log);
        customdata[i].push(`${names[i]} → ${column}: ${weight}`);
      }
    }
    return {z, customdata};
  };

  // Where the legend begins: below the title of the horizontal axis, in heights of the drawing.
  const below = (figure) =>
    document.getElementById(figure.key).classList.contains("tall") ? -0.16 : -0.24;

  const prepared = (trace, chosen, figure) => {
    const meta = trace.meta || {};
    const made = {...trace};
    if (meta.x) made.x = meta.x[chosen.axis || "step"];
    if (meta.codes) Object.assign(made, decoded(meta.codes, figure.layout.meta.names));
    if (meta.colors) {
      const own = meta.colors[dark.matches ? 1 : 0];
      made.line = {...trace.line, color: own};
      made.marker = {...trace.marker, color: own, size: 6};
      if (meta.band) made.fillcolor = own + (trace.stackgroup ? "b0" : "38");
    }
    if (trace.type === "heatmap") {
      made.colorbar = {...trace.colorbar, y: below(figure) - 0.04, outlinewidth: 0,
                       tickfont: {size: 11}};
    }
    return made;
  };

  const layoutOf = (figure, traces, chosen) => {
    const [text, quiet, line] = ["--text", "--quiet", "--line"].map(color);
    const axis = (own) => ({
      gridcolor: line, zerolinecolor: line, linecolor: quiet, tickcolor: quiet, automargin: true,
      ...own, title: {standoff: 8, ...own.title},
    });
    const layout = {
      ...figure.layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: {color: text, size: 12, family: getComputedStyle(document.body).fontFamily},
      margin: {l: 56, r: 12, t: narrow.matches ? 8 : 32, b: 48},
      legend: {orientation: "h", x: 0, xanchor: "left", y: below(figure), yanchor: "top",
               traceorder: "normal", bgcolor: "rgba(0,0,0,0)"},
      hoverlabel: {bgcolor: color("--page"), bordercolor: line, font: {color: text}},
      modebar: {bgcolor: "rgba(0,0,0,0)", color: quiet, activecolor: text},
      // On a phone a finger that drags scrolls the page.
      dragmode: narrow.matches ? false : "zoom",
      xaxis: axis(figure.layout.xaxis),
      yaxis: axis(figure.layout.yaxis),
    };
    layout.shapes = (figure.layout.shapes || []).map(
      (shape) => ({...shape, line: {...shape.line, color: quiet}}));
    const late = figure.layout.meta && figure.layout.meta.late;
    if (late && chosen.range === "late") layout.yaxis.range = late;
    const first = traces[0] || {};
    if (first.meta && first.meta.x) layout.xaxis.title.text = xTitles[chosen.axis || "step"];
    if (first.meta && first.meta.ytitle) layout.yaxis.title.text = first.meta.ytitle;
    return layout;
  };

  const draw = (figure) => {
    const element = document.getElementById(figure.key);
    const chosen = selection(element);
    const traces = figure.data.filter((trace) => shown(trace, chosen))
                       .map((trace) => prepared(trace, chosen, figure));
    // The library's own list has a button that sends the figure to its maker's server.
    const options = {responsive: true, displaylogo: false, displayModeBar: !narrow.matches,
                     modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d",
                                       "autoScale2d", "resetScale2d"]]};
    return Plotly.react(element.querySelector(".plot"), traces,
                        layoutOf(figure, traces, chosen), options);
  };

  const drawAll = () => Promise.all(figures.map(draw));

  for (const select of document.querySelectorAll("select")) {
    const own = select.closest(".figure");
    select.addEventListener("change", () => {
      if (own) draw(figures.find((figure) => figure.key === own.id));
      else drawAll();
    });
  }
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll().then(() => { document.documentElement.dataset.drawn = "true"; });
})();
