"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);

  // All figures over environment steps share an x-axis.
  const linked = (plot) => plot.figure.cursor || !plot.figure.frames.length;

  const plots = figures.filter((figure) => figure.traces.length)
    .map((figure) => ({ figure, node: document.getElementById("plot-" + figure.name), frame: figure.frames.length - 1 }));

  function draw(plot) {
    const traces = theme.resolved(plot.figure.traces);
    const layout = theme.layoutOf(plot.figure);
    if (plot.figure.frames.length) {
      for (const [index, z] of plot.figure.frames[plot.frame]) traces[index].z = z;
      place(plot, layout);
    }
    if (plot.range) layout.xaxis.range = plot.range.slice();
    return Plotly.react(plot.node, traces, layout, theme.options);
  }

  function place(plot, layout) {
    if (plot.figure.cursor) layout.shapes[0].x0 = layout.shapes[0].x1 = plot.figure.steps[plot.frame];
  }

  // ------------------------------------------------------------------ one x-axis: zooming a figure zooms all over steps
  let following = false;
  function link(plot) {
    plot.node.on("plotly_relayout", (event) => {
      if (following) return;
      let range = null; // of all figures, or none: each its own
      if ("xaxis.range[0]" in event) range = [event["xaxis.range[0]"], event["xaxis.range[1]"]];
      else if (event["xaxis.range"]) range = event["xaxis.range"];
      else if (!event["xaxis.autorange"]) return;
      following = true;
      const others = plots.filter(linked);
      others.forEach((other) => { other.range = range; });
      Promise.all(others.map((other) =>
        Plotly.relayout(other.node, { "xaxis.range": (range || other.figure.layout.xaxis.range).slice() })))
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
    plots.filter(linked).forEach(link);
    if (slider) animate(document.getElementById("play"));
    document.documentElement.dataset.drawn = String(plots.length);
  });
  theme.whenChanged(() => plots.forEach(draw));
})();
