"use strict";

/** Show the images of the gallery that fit all inputs. */
function setUpGallery() {
  const inputs = document.querySelector(".find");
  if (!inputs) return;
  inputs.style.display = "flex";
  const value = (id) => document.getElementById(id)?.value ?? "";
  const groups = [...document.querySelectorAll(".group")];
  function apply() {
    const words = value("find").trim().toLowerCase();
    const score = value("find-score");
    const [low, high] = [value("find-low"), value("find-high")].map((text) => (text === "" ? null : Number(text)));
    let found = 0;
    groups.forEach((group, number) => {
      let shown = 0;
      const chosen = value("find-group") === "" || Number(value("find-group")) === number;
      for (const image of group.querySelectorAll(".image")) {
        const measured = score === "" ? null : JSON.parse(image.dataset.scores)[Number(score)];
        const inside = score === "" || (low === null && high === null) ||
          (measured !== null && (low === null || measured >= low) && (high === null || measured <= high));
        image.hidden = !(chosen && inside && image.dataset.find.includes(words));
        shown += image.hidden ? 0 : 1;
      }
      group.hidden = shown === 0;
      found += shown;
    });
    document.getElementById("found").textContent = `${found} ${found === 1 ? "image" : "images"}`;
  }
  inputs.addEventListener("input", apply);
  apply();
}

/** A linear axis, or a logarithmic one where values span orders of magnitude. */
function axis(values, length, turned) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const log = low > 0 && high / low > 100;
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 1, high + 1];
  const scaled = (value) => (log ? Math.log10(value) : value);
  const place = (value) => {
    const share = (scaled(value) - scaled(low)) / (scaled(high) - scaled(low));
    return length * (turned ? 1 - share : share);
  };
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  return { low, high, log, place, ticks: [low, middle, high] };
}

function short(value) {
  const size = Math.abs(value);
  if (value === 0 || (size >= 0.001 && size < 1e6)) return Number(value.toPrecision(3)).toLocaleString("en-US");
  return value.toExponential(1);
}

/** Draw any two columns against each other. */
function setUpScatter() {
  const box = document.getElementById("scatter-plot");
  if (!box) return;
  let [width, height] = [640, 320];
  const svg = box.querySelector("svg");
  const names = box.dataset.names.split(" ");
  const statuses = box.dataset.statuses.split(" ");
  const points = JSON.parse(box.dataset.points);
  const cuts = JSON.parse(box.dataset.cuts);
  const [x, y] = ["x", "y"].map((name) => document.getElementById(`scatter-${name}`));
  const make = (tag, attributes, text = "") => {
    const element = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  function draw() {
    // as wide as the window allows, so that texts keep their size
    width = Math.min(760, Math.max(200, box.clientWidth - 110));
    height = Math.round(width < 400 ? width : width / 2);
    svg.setAttribute("viewBox", `-58 -22 ${width + 78} ${height + 66}`);
    svg.style.maxWidth = `${width + 78}px`;
    const [i, j] = [Number(x.value), Number(y.value)];
    const shown = points.filter((point) => point[i + 1] !== null && point[j + 1] !== null);
    svg.setAttribute("aria-label", `Scatter plot of ${names[j]} over ${names[i]}: ${shown.length} samples`);
    const parts = [make("rect", { class: "plot", x: 0, y: 0, width, height })];
    if (shown.length === 0) {
      parts.push(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no sample has both values"));
      svg.replaceChildren(...parts);
      return;
    }
    const horizontal = axis(shown.map((point) => point[i + 1]), width, false);
    const vertical = axis(shown.map((point) => point[j + 1]), height, true);
    for (const point of shown) {
      const [cx, cy] = [horizontal.place(point[i + 1]).toFixed(1), vertical.place(point[j + 1]).toFixed(1)];
      parts.push(make("circle", { class: `fill-${statuses[point[0]]}`, cx, cy, r: 3, opacity: 0.55 }));
    }
    for (const [column, , value] of cuts) {
      if (column === i && value >= horizontal.low && value <= horizontal.high) {
        const place = horizontal.place(value);
        parts.push(make("line", { class: "cut", x1: place, x2: place, y1: 0, y2: height }));
      }
      if (column === j && value >= vertical.low && value <= vertical.high) {
        const place = vertical.place(value);
        parts.push(make("line", { class: "cut", x1: 0, x2: width, y1: place, y2: place }));
      }
    }
    horizontal.ticks.forEach((value, n) => parts.push(make("text",
      { x: horizontal.place(value), y: height + 16, "text-anchor": ["start", "middle", "end"][n] }, short(value))));
    vertical.ticks.forEach((value, n) => parts.push(make("text",
      { x: -7, y: vertical.place(value) + [0, 4, 9][n], "text-anchor": "end" }, short(value))));
    const scale = (one) => (one.log ? ", logarithmic" : "");
    parts.push(make("text", { class: "name", x: width / 2, y: height + 36, "text-anchor": "middle" },
      names[i] + scale(horizontal)));
    parts.push(make("text", { class: "name", x: 0, y: -8 }, names[j] + scale(vertical)));
    svg.replaceChildren(...parts);
  }
  box.querySelector(".needs-script").remove();
  box.querySelector(".controls").hidden = false;
  svg.removeAttribute("hidden");
  x.addEventListener("change", draw);
  y.addEventListener("change", draw);
  addEventListener("resize", draw);
  draw();
}

setUpGallery();
setUpScatter();
