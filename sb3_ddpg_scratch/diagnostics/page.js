"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
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

  function color(name) {
    if (name in scales) return scales[name]();
    const style = getComputedStyle(document.documentElement);
    const read = (variable) => style.getPropertyValue("--" + variable).trim();
    return name.startsWith("faint") ? faint(read(name.replace("faint", "run"))) : read(name);
  }

  function resolved(value) {
    if (Array.isArray(value)) return value.length && typeof value[0] === "object" ? value.map(resolved) : value;
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item)]));
    }
    return typeof value === "string" && value.startsWith("theme:") ? color(value.slice(6)) : value;
  }

  function layoutOf(figure) {
    const axis = { gridcolor: color("edge"), linecolor: color("edge"), zerolinecolor: color("edge"), automargin: true };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, autosize: true,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("muted") },
      margin: { l: 48, r: 10, t: 14, b: 34 }, dragmode: narrow.matches ? false : "zoom",
      hoverlabel: { bgcolor: color("panel"), bordercolor: color("edge"), font: { color: color("text"), size: 12 }, namelength: -1 },
      ...resolved(figure.layout),
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) layout[key] = { ...axis, ...layout[key] };
      if (/^coloraxis\d*$/.test(key) && layout[key].colorbar) layout[key].colorbar.tickcolor = color("edge");
    }
    if (figure.linked) {
      layout.xaxis = { ...axis, range: figure.range.slice(), ...layout.xaxis };
      layout.hovermode = figure.heat ? "closest" : "x unified";
    }
    return layout;
  }

  const options = { responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const plots = figures.filter((figure) => figure.traces.length)
    .map((figure) => ({ figure, node: document.getElementById("plot-" + figure.name), frame: figure.frames.length - 1 }));

  function draw(plot) {
    const traces = resolved(plot.figure.traces);
    const layout = layoutOf(plot.figure);
    if (plot.figure.frames.length) {
      for (const [index, z] of plot.figure.frames[plot.frame]) traces[index].z = z;
      place(plot, layout);
    }
    if (plot.range) layout.xaxis.range = plot.range.slice();
    return Plotly.react(plot.node, traces, layout, options);
  }

  function place(plot, layout) {
    if (plot.figure.cursor) layout.shapes[0].x0 = layout.shapes[0].x1 = plot.figure.steps[plot.frame];
  }

  // ------------------------------------------------------------------ one x-axis: zooming a figure zooms all over steps
  let following = false;
  function link(plot) {
    plot.node.on("plotly_relayout", (event) => {
      if (following) return;
      let range = null;
      if ("xaxis.range[0]" in event) range = [event["xaxis.range[0]"], event["xaxis.range[1]"]];
      else if (event["xaxis.range"]) range = event["xaxis.range"];
      else if (event["xaxis.autorange"]) range = plot.figure.range;
      else return;
      following = true;
      const others = plots.filter((other) => other.figure.linked);
      others.forEach((other) => { other.range = range; });
      Promise.all(others.map((other) => Plotly.relayout(other.node, { "xaxis.range": range.slice() })))
        .finally(() => { following = false; });
    });
  }

  // ------------------------------------------------------------------------------------------------ the snapshots' slider
  const slider = document.getElementById("snapshot");
  const steps = [...new Set(plots.flatMap((plot) => plot.figure.steps))].sort((a, b) => a - b);

  function choose(position) {
    const step = steps[position];
    const text = `Snapshot at step ${step.toLocaleString("en")}`;
    document.getElementById("snapshot-label").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    for (const plot of plots) {
      if (!plot.figure.frames.length) continue;
      // Runs have snapshots of their own: each shows its latest up to that step, or its first.
      const frame = Math.max(0, plot.figure.steps.filter((at) => at <= step).length - 1);
      if (frame === plot.frame) continue;
      plot.frame = frame;
      const changes = plot.figure.frames[frame];
      const layout = plot.figure.cursor ? { "shapes[0].x0": plot.figure.steps[frame], "shapes[0].x1": plot.figure.steps[frame] } : {};
      Plotly.update(plot.node, { z: changes.map((change) => change[1]) }, layout, changes.map((change) => change[0]));
    }
  }

  function animate(button) {
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
    button.addEventListener("click", () => {
      if (timer !== null) { stop(); return; }
      if (Number(slider.value) >= steps.length - 1) slider.value = 0;
      button.textContent = "Pause";
      choose(Number(slider.value));
      timer = setInterval(() => {
        if (Number(slider.value) >= steps.length - 1) { stop(); return; }
        slider.value = Number(slider.value) + 1;
        choose(Number(slider.value));
      }, 350);
    });
    slider.addEventListener("input", () => { if (timer !== null) stop(); choose(Number(slider.value)); });
  }

  Promise.all(plots.map(draw)).then(() => {
    plots.filter((plot) => plot.figure.linked).forEach(link);
    if (slider) animate(document.getElementById("play"));
    document.documentElement.dataset.drawn = String(plots.length);
  });
  for (const query of [dark, narrow]) query.addEventListener("change", () => plots.forEach(draw));
})();
