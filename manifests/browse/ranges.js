// Ranges of numeric columns: a histogram with two handles, and two fields for exact numbers.
import { $, make, number, state, written } from "./common.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 36;

/** Draw the histograms of the open columns, and the list of the others. */
export function drawRanges(distributions, { choose, open }) {
  const focused = document.activeElement?.dataset?.end;
  const facts = Object.fromEntries(state.facts.columns.map((column) => [column.name, column]));
  $("#ranges").replaceChildren(...distributions.map((found) => range(found, facts[found.column], choose, open)));
  if (focused) $(`[data-end="${CSS.escape(focused)}"]`)?.focus();
  const others = state.facts.numeric.filter((name) => !state.open.includes(name));
  const add = make("select", { id: "add-range" }, make("option", { value: "" }, "Add a range …"),
    ...others.map((name) => make("option", { value: name }, name)));
  add.setAttribute("aria-label", "Add the range of a column");
  add.addEventListener("change", () => add.value && open([...state.open, add.value]));
  $("#ranges").append(others.length ? add : "");
}

function range({ column, low, high, start, end, counts, missing }, facts, choose, open) {
  const unit = facts.unit && facts.unit !== "1" ? `, ${facts.unit}` : "";
  const remove = make("button", { type: "button", className: "remove", title: `Remove the range of ${column}` }, "×");
  remove.setAttribute("aria-label", `Remove the range of ${column}`);
  remove.addEventListener("click", () => open(state.open.filter((name) => name !== column)));
  const legend = make("legend", { title: facts.meaning }, make("span", {}, column, make("small", {}, unit)), remove);
  const field = make("fieldset", { className: "range" }, legend);
  field.dataset.column = column;
  if (low === null) {
    field.append(make("p", {}, "no row has a number"));
    return field;
  }
  const chosen = state.ranges[column] ?? { low: null, high: null };
  const width = (end - start) / counts.length;
  const step = (value) => (width ? Math.min(counts.length, Math.max(0, (value - start) / width)) : 0);
  let ends = [chosen.low === null ? 0 : step(chosen.low), chosen.high === null ? counts.length : step(chosen.high)];
  const bars = histogram(counts);
  const paint = () => [...bars.children].forEach((bar, n) => bar.classList.toggle("out", n + 1 <= ends[0] || n >= ends[1]));
  paint();
  const value = (place) => +(start + place * width).toPrecision(6);
  const fields = ["low", "high"].map((side) => entry(column, side, chosen[side], side === "low" ? low : high));
  const apply = () => {
    const [least, most] = fields.map(({ value }) => (value.trim() === "" ? null : Number(value)));
    if (least !== null && most !== null && least > most) choose(column, most, least);
    else choose(column, least, most);
  };
  const handles = ["low", "high"].map((side, n) => {
    const handle = make("input", { type: "range", min: 0, max: counts.length, step: 1, value: Math.round(ends[n]) });
    handle.setAttribute("aria-label", `${n ? "Highest" : "Lowest"} ${column}`);
    handle.dataset.end = `${column} ${side} handle`;
    handle.addEventListener("input", () => {
      const places = handles.map((one) => Number(one.value));
      // a handle stops at the other one
      if (places[0] >= places[1]) handle.value = places[n] = n ? Math.min(places[0] + 1, counts.length) : Math.max(places[1] - 1, 0);
      ends = places;
      fields[n].value = places[n] === (n ? counts.length : 0) ? "" : value(places[n]);
      paint();
    });
    handle.addEventListener("change", apply);
    return handle;
  });
  for (const one of fields) one.addEventListener("change", apply);
  const total = counts.reduce((sum, one) => sum + one, 0);
  bars.setAttribute("aria-label", `${number(total)} rows between ${written(low)} and ${written(high)}`);
  field.append(make("div", { className: "histogram" }, bars, ...(width ? handles : [])),
    make("div", { className: "ends" }, fields[0], make("span", {}, "to"), fields[1]));
  if (missing) field.append(make("p", {}, `${number(missing)} without a value`));
  return field;
}

function entry(column, end, chosen, limit) {
  const field = make("input", { type: "number", step: "any", value: chosen ?? "", placeholder: written(limit) });
  field.setAttribute("aria-label", `${end === "low" ? "From" : "To"} ${column}`);
  field.dataset.end = `${column} ${end}`;
  return field;
}

function histogram(counts) {
  const chart = document.createElementNS(SVG, "svg");
  chart.setAttribute("viewBox", `0 0 ${counts.length} ${HEIGHT}`);
  chart.setAttribute("preserveAspectRatio", "none");
  chart.setAttribute("role", "img");
  const most = Math.max(1, ...counts);
  counts.forEach((count, n) => {
    const bar = document.createElementNS(SVG, "rect");
    // an interval with few rows is visible beside one with many
    const height = count ? Math.max(1.5, (count / most) * HEIGHT) : 0;
    for (const [name, value] of Object.entries({ x: n + 0.06, y: HEIGHT - height, width: 0.88, height })) {
      bar.setAttribute(name, value);
    }
    const title = document.createElementNS(SVG, "title");
    title.textContent = `${number(count)} rows`;
    bar.append(title);
    chart.append(bar);
  });
  return chart;
}
