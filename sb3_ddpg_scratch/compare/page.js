"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("figures").textContent)
    .filter((figure) => figure.traces.length)
    .map((figure) => ({ figure, node: document.getElementById("plot-" + figure.name) }));
  const hidden = new Set();
  const tabs = [...document.querySelectorAll('input[name="env"]')];
  const chosen = () => tabs.find((tab) => tab.checked)?.value;
  const shown = (plot) => !plot.figure.env || !tabs.length || plot.figure.env === chosen();

  function draw(plot) {
    const traces = theme.resolved(plot.figure.traces).map((trace) => ({ ...trace, visible: !hidden.has(trace.meta) }));
    return Plotly.react(plot.node, traces, theme.layoutOf(plot.figure), theme.options);
  }

  // A figure that is not shown has no size to be drawn in: it is drawn when its environment is chosen.
  function drawShown() {
    for (const frame of document.querySelectorAll("figure[data-env]")) {
      frame.hidden = tabs.length > 0 && frame.dataset.env !== chosen();
    }
    return Promise.all(plots.filter(shown).map(draw));
  }

  for (const tab of tabs) {
    tab.addEventListener("change", () => {
      tab.parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
      drawShown();
    });
  }
  for (const button of document.querySelectorAll("button[data-arm]")) {
    const arm = Number(button.dataset.arm);
    button.addEventListener("click", () => {
      if (!hidden.delete(arm)) hidden.add(arm);
      button.setAttribute("aria-pressed", String(!hidden.has(arm)));
      drawShown();
    });
  }
  theme.whenChanged(drawShown);
  drawShown().then((drawn) => { document.documentElement.dataset.drawn = String(drawn.length); });
})();
