(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const viewer = byId("viewer"), panes = byId("panes");
  const sides = { left: byId("pane-left"), right: byId("pane-right") };
  const state = { row: 0, left: 0, right: 1, mode: "side", other: false, fault: "" };
  let opener = null;

  const image = (side) => sides[side].querySelector("img");
  // all images of a row have one size
  const here = () => data.rows[state.row].images[state.left];
  const view = zoomable(panes, [sides.left, sides.right], here, label);
  const { draw, fit, resized, zoom, pixel } = view;

  function label() {
    byId("scale").textContent = `${Math.round((100 * view.state.scale) / pixel())} %`;
    const other = state.mode === "flip" && state.other ? " other" : "";
    panes.className = state.mode === "side" ? "" : `over ${state.mode}${other}`;
    viewer.classList.toggle("differs", state.mode === "difference");
    panes.style.filter = state.mode === "difference" ? `brightness(${byId("gain").value})` : "";
    const apart = `|${data.arms[state.left]} - ${data.arms[state.right]}| x ${byId("gain").value}`;
    byId("said").textContent = state.fault || (state.mode === "difference" ? apart : "");
    for (const mode of ["side", "flip", "difference"]) byId(mode).classList.toggle("on", mode === state.mode);
  }

  function show() {
    const row = data.rows[state.row];
    byId("where").textContent = `${row.name}: ${row.prompt}`;
    byId("where").title = row.prompt;
    state.fault = "";
    for (const side of ["left", "right"]) {
      const of = row.images[state[side]], one = image(side);
      byId(side).value = state[side];
      sides[side].querySelector(".label").textContent = `${data.arms[state[side]]} · ${of.scores}`;
      if (one.getAttribute("src") !== of.source) {
        one.onerror = () => {
          state.fault = `${of.file} cannot be shown: is it still where it was scored?`;
          draw();
        };
        one.src = of.source;
      }
    }
    draw();
  }

  function open(row, arm, from) {
    opener = from;
    state.row = row;
    state.left = 0;
    state.right = arm === 0 ? Math.min(1, data.arms.length - 1) : arm;
    state.mode = "side";
    viewer.hidden = false;
    document.body.style.overflow = "hidden";
    show();
    fit();
    byId("close").focus();
  }

  function close() {
    viewer.hidden = true;
    document.body.style.overflow = "";
    opener?.focus();
  }

  function step(by) {
    const visible = [...document.querySelectorAll(".row")].filter((one) => !one.hidden).map((one) => +one.dataset.row);
    const at = visible.indexOf(state.row);
    state.row = visible[(at + by + visible.length) % visible.length];
    show();
  }

  function turn() {
    if (state.mode !== "flip") mode("flip");
    state.other = !state.other;
    draw();
  }

  function mode(name) {
    state.mode = name;
    label();  // the panes have another size afterwards
    resized();
  }

  for (const button of document.querySelectorAll(".open")) {
    button.onclick = () => open(+button.closest(".row").dataset.row, +button.dataset.arm, button);
  }
  byId("fit").onclick = fit;
  byId("one").onclick = () => zoom(pixel());
  byId("four").onclick = () => zoom(4 * pixel());
  byId("close").onclick = close;
  byId("next").onclick = () => step(1);
  byId("previous").onclick = () => step(-1);
  byId("gain").oninput = draw;
  for (const name of ["side", "difference"]) byId(name).onclick = () => mode(name);
  byId("flip").onclick = turn;
  for (const side of ["left", "right"]) {
    byId(side).onchange = (event) => { state[side] = +event.target.value; show(); };
  }

  document.addEventListener("keydown", (event) => {
    if (viewer.hidden || event.target.matches("select, input")) return;
    const keys = {
      Escape: close, f: fit, 1: () => zoom(pixel()), 4: () => zoom(4 * pixel()), ArrowRight: () => step(1),
      ArrowLeft: () => step(-1), s: () => mode("side"), d: () => mode("difference"),
      " ": turn,
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  addEventListener("resize", () => { if (!viewer.hidden) resized(); });

  const list = byId("rows"), articles = [...list.children];
  byId("order").onchange = (event) => {
    const column = event.target.value;
    const apart = (one) => (column === "" ? -one.dataset.row : data.rows[one.dataset.row].apart[column] ?? -1);
    list.append(...[...articles].sort((a, b) => apart(b) - apart(a) || a.dataset.row - b.dataset.row));
  };
  byId("find").oninput = (event) => {
    const text = event.target.value.trim().toLowerCase();
    for (const one of articles) one.hidden = !one.dataset.text.includes(text);
  };
})();
