// One row: its image, verdict, rules, columns and review.
import { $, ask, COUNT, make, state, written } from "./common.js";
import { go } from "./list.js";
import { decide } from "./review.js";

let shown = null;
let latest = 0;

export async function openRecord(position) {
  const dialog = $("#record");
  const mine = ++latest;
  if (!dialog.open) dialog.showModal();
  try {
    const found = await ask(`sample/${position}`);
    if (mine !== latest) return;
    shown = found;
    $("h2", dialog).textContent = shown.uri;
    $(".body", dialog).replaceChildren(picture(shown), facts(shown));
  } catch (error) {
    if (mine !== latest) return;
    shown = null;
    $("h2", dialog).textContent = "";
    $(".body", dialog).replaceChildren(make("p", { className: "error" }, error.message));
  }
  const place = state.rows.findIndex((row) => row.position === position);
  const number = state.start + place;
  $("[data-step='-1']", dialog).disabled = place < 0 || number === 0;
  $("[data-step='1']", dialog).disabled = place < 0 || number >= state.total - 1;
}

function picture(record) {
  const frame = make("div", { className: "picture" });
  if (record.status === "failed") {
    frame.append(make("p", {}, record.error || "no image"));
    return frame;
  }
  const image = make("img", { alt: record.uri });
  image.addEventListener("error", async () => {
    let text = "no image";
    try {
      await ask(`image/${record.position}`);
    } catch (error) {
      text = error.message;
    }
    image.replaceWith(make("p", {}, text));
  });
  image.src = `image/${record.position}`;
  frame.append(image);
  return frame;
}

function facts(record) {
  const found = make("div", { className: "facts" });
  const verdict = [record.status, record.reason, record.error].filter(Boolean).join(": ");
  found.append(make("p", {}, make("b", { className: record.status }, verdict)), review(record));
  if (record.rules.length) {
    found.append(make("h3", {}, "Rules"), make("table", {}, make("tbody", {}, ...record.rules.map(rule))));
  }
  const stages = [...new Set(record.columns.map((column) => column.stage))];
  for (const stage of stages) {
    const columns = record.columns.filter((column) => column.stage === stage && !column.column.startsWith("review"));
    const filled = columns.filter((column) => column.value !== null || column.vector);
    if (filled.length) {
      found.append(make("h3", {}, stage), make("table", {}, make("tbody", {}, ...filled.map(line))));
    }
  }
  const empty = record.columns.filter((column) => column.value === null && !column.vector).map((one) => one.column);
  if (empty.length) found.append(make("h3", {}, "Without a value"), make("p", { className: "soft" }, empty.join(", ")));
  found.append(make("h3", {}, "Identity"), make("table", {}, make("tbody", {},
    line({ column: "sample_id", value: record.sample_id }), line({ column: "uri", value: record.uri }),
    record.path ? line({ column: "file", value: record.path }) : "")));
  return found;
}

function line({ column, value, unit, range, vector }) {
  const text = vector ? "a vector" : written(value) + (unit && unit !== "1" ? ` ${unit}` : "");
  const title = range ? `range ${range}` : "";
  return make("tr", {}, make("th", { scope: "row", title }, column), make("td", {}, text));
}

function rule({ rule: name, where, outcome, values, why }) {
  const read = Object.entries(values).map(([column, value]) => `${column} ${written(value)}`).join(", ");
  const text = make("td", {}, make("code", {}, where), make("br"), make("span", { className: "soft" }, why || read));
  return make("tr", { className: "rule" }, make("th", { scope: "row" }, name), text,
    make("td", { className: outcome }, outcome));
}

function review(record) {
  const { review: verdict, review_tags: tags, name, time, reason } = record.review;
  const parts = [verdict, ...(tags ?? [])].filter(Boolean).join(", ");
  const by = [name && `by ${name}`, time, reason].filter(Boolean).join(" · ");
  const text = parts ? make("p", {}, make("b", {}, parts), " ", make("span", { className: "soft" }, by)) :
    make("p", { className: "soft" }, "not reviewed");
  const why = make("input", { id: "record-reason", placeholder: "Reason", maxLength: 2000, value: $("#reason").value });
  why.setAttribute("aria-label", "Reason");
  why.addEventListener("input", () => ($("#reason").value = why.value));
  const error = make("p", { className: "error" });
  error.setAttribute("role", "alert");
  const act = async (changes) => {
    try {
      await decide([record.position], changes);
      await openRecord(record.position);
    } catch (problem) {
      error.textContent = problem.message;
    }
  };
  const button = (label, className, changes) => {
    const found = make("button", { type: "button", className }, label);
    found.addEventListener("click", () => act(changes));
    return found;
  };
  return make("div", { className: "decide" }, make("h3", {}, "Review"), text,
    make("div", { className: "actions" }, why, button("Accept", "accept", { verdict: "accepted" }),
      button("Reject", "reject", { verdict: "rejected" }), button("Take back", "", { verdict: "none" })), error);
}

async function step(by) {
  if (!shown) return;
  const place = state.rows.findIndex((row) => row.position === shown.position);
  const number = state.start + place + by;
  if (place < 0 || number < 0 || number >= state.total) return;
  if (number < state.start) await go(state.start - COUNT);
  if (number >= state.start + state.rows.length) await go(state.start + COUNT);
  const row = state.rows[number - state.start];
  if (row) await openRecord(row.position);
}

const dialog = document.querySelector("#record");
dialog.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (event.target === dialog || button?.dataset.close !== undefined) dialog.close();
  if (button?.dataset.step) step(Number(button.dataset.step));
});
// of the document: after a decision the button that had the focus is gone
document.addEventListener("keydown", (event) => {
  if (!dialog.open || event.target.matches("input")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
  if (event.key === "a" || event.key === "r") dialog.querySelector(event.key === "a" ? ".accept" : ".reject")?.click();
});
