"use strict";
// The reader's light or dark mode and screen, and what follows from them for every figure.
const theme = (() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 760px)");

  // Both diverging scales have the page's ground in the middle: what is near zero steps back.
  const scales = {
    diverging: () => dark.matches
      ? [[0, "#5b9fdd"], [0.25, "#2b5f91"], [0.5, "#1c2129"], [0.75, "#94562b"], [1, "#e08b4c"]]
      : [[0, "#0b4f8a"], [0.25, "#7fb2dc"], [0.5, "#f5f5f5"], [0.75, "#eeab7b"], [1, "#a23b06"]],
    sequential: () => [[0, "#1d1147"], [0.25, "#51127c"], [0.5, "#b73779"], [0.75, "#fc8961"], [1, "#fcfdbf"]],
  };
  const faint = (color) => color + (dark.matches ? "8c" : "66");
  const wash = (color) => color + (dark.matches ? "40" : "2b");

  function color(name) {
    if (name in scales) return scales[name]();
    const style = getComputedStyle(document.documentElement);
    const read = (variable) => style.getPropertyValue("--" + variable).trim();
    if (name.startsWith("faint")) return faint(read(name.replace("faint", "run")));
    return name.startsWith("wash") ? wash(read(name.replace("wash", "run"))) : read(name);
  }

  function resolved(value) {
    if (Array.isArray(value)) return value.length && typeof value[0] === "object" ? value.map(resolved) : value;
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item)]));
    }
    return typeof value === "string" && value.startsWith("theme:") ? color(value.slice(6)) : value;
  }

  // What all figures have in common, as a Plotly template: a figure's own layout overrides it.
  function template() {
    const axis = { gridcolor: color("edge"), linecolor: color("edge"), zerolinecolor: color("edge"), automargin: true };
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, xaxis: axis, yaxis: axis,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("muted") },
      hoverlabel: { bgcolor: color("panel"), bordercolor: color("edge"), font: { color: color("text"), size: 12 }, namelength: -1 },
      coloraxis: { colorbar: { tickcolor: color("edge") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("muted"), activecolor: color("text") },
    } };
  }

  const toolbar = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--toolbar"));

  function layoutOf(figure) {
    const layout = { autosize: true, dragmode: narrow.matches ? false : "zoom", xaxis: {}, yaxis: {},
      ...resolved(figure.layout), template: template() };
    layout.margin = { l: 48, r: 10, t: 14, b: 34, ...layout.margin };
    layout.margin.t += toolbar();
    return layout;
  }

  const options = { responsive: true, displaylogo: false, displayModeBar: toolbar() > 0 ? true : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  return {
    color, resolved, layoutOf, options,
    whenChanged: (redraw) => { for (const query of [dark, narrow]) query.addEventListener("change", redraw); },
  };
})();
