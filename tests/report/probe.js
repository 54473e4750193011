"use strict";
// Runs inside a page of scripts/report.sh that the test has loaded into a frame: looks at what was
// drawn and sends it to the frame's parent.
(() => {
  const problems = window.reportProblems;
  const box = (element) => {
    const {left, right, top, bottom} = element.getBoundingClientRect();
    return {left, right, top, bottom};
  };
  const text = (root, selector) => {
    const found = root.querySelector(selector);
    return found ? found.textContent : "";
  };
  const overlap = (a, b) =>
    a && b && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;

  const look = (figure) => {
    const legend = figure.querySelector(".legend, .infolayer .colorbar, .infolayer [class^=cb]");
    const xtitle = figure.querySelector(".xtitle"), ytitle = figure.querySelector(".ytitle");
    const area = figure.querySelector(".plot .bglayer rect, .plot .gridlayer") ||
                 figure.querySelector(".cartesianlayer");
    const outer = box(figure.querySelector(".plot"));
    const parts = [legend, xtitle, ytitle].filter(Boolean).map(box);
    return {
      key: figure.id,
      title: text(figure, "h3"),
      xtitle: text(figure, ".xtitle"),
      ytitle: text(figure, ".ytitle"),
      legend: [...figure.querySelectorAll(".legendtext")].map((item) => item.textContent),
      colorbar: text(figure, ".infolayer [class*=title]:not(.g-xtitle):not(.g-ytitle) text"),
      marks: figure.querySelectorAll(".scatterlayer .trace, .heatmaplayer image").length,
      inside: parts.every((part) => part.left >= outer.left - 1 && part.right <= outer.right + 1 &&
                                    part.bottom <= outer.bottom + 1),
      overlap: overlap(legend && box(legend), xtitle && box(xtitle)),
      height: area ? area.getBoundingClientRect().height : 0,
      ink: xtitle ? getComputedStyle(xtitle).fill : "",
    };
  };

  const looks = () => [...document.querySelectorAll(".figure")].map(look);
  const pause = () => new Promise((resolve) => setTimeout(resolve, 400));
  const choose = async (selector, value) => {
    const select = document.querySelector(selector);
    if (!select) return;
    select.value = value;
    select.dispatchEvent(new Event("change"));
    await pause();
  };

  const report = async () => {
    for (let tries = 0; document.documentElement.dataset.drawn !== "true"; tries++) {
      if (tries === 50) throw new Error(`the page was not drawn: ${problems.join("; ")}`);
      await pause();
    }
    await pause();
    const root = document.documentElement;
    const result = {
      width: innerWidth,
      scroll: root.scrollWidth,
      height: root.scrollHeight,
      dark: matchMedia("(prefers-color-scheme: dark)").matches,
      background: getComputedStyle(document.body).backgroundColor,
      text: getComputedStyle(document.body).color,
      first: looks(),
    };
    await choose("[data-control=axis]", "tokens");
    await choose("[data-control=seeds]", "single");
    result.second = looks();
    await choose("[data-control=axis]", "hours");
    for (const select of document.querySelectorAll(".figure select")) {
      select.selectedIndex = select.options.length - 1;
      select.dispatchEvent(new Event("change"));
    }
    await pause();
    result.third = looks();
    result.resources = performance.getEntriesByType("resource").map((entry) => entry.name);
    result.problems = problems;
    parent.postMessage(result, "*");
  };
  report().catch((error) => {
    parent.postMessage({width: innerWidth, problems: [String(error)]}, "*");
  });
})();
