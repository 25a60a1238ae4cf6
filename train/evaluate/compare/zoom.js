// One zoom for images side by side: wheel, drag, two fingers, double click. `panes` are elements of one size
// in `box`, each with one img; `size()` is the width and height of the images in px, `drawn` is called after
// each change. `state.scale` is image px to CSS px; state.x and state.y are the place of the image's corner
// in a pane.
function zoomable(box, panes, size, drawn = () => {}) {
  const state = { scale: 1, x: 0, y: 0 };
  const images = panes.map((pane) => pane.querySelector("img"));
  let fitted = true, last = { width: 0, height: 0 };  // `last`: the size of a pane at the last change
  const pixel = () => 1 / (window.devicePixelRatio || 1);  // one image px is one px of the screen
  const fitting = (pane) => Math.min(pane.width / size().width, pane.height / size().height);

  function draw() {
    for (const one of images) {
      one.style.width = `${size().width}px`;
      one.style.height = `${size().height}px`;
      one.style.transform = `translate(${state.x}px, ${state.y}px) scale(${state.scale})`;
      one.classList.toggle("pixels", state.scale >= 0.999 * pixel());
    }
    last = panes[0].getBoundingClientRect();
    drawn();
  }

  function fit() {
    const pane = panes[0].getBoundingClientRect();
    fitted = true;
    state.scale = fitting(pane);
    state.x = (pane.width - size().width * state.scale) / 2;
    state.y = (pane.height - size().height * state.scale) / 2;
    draw();
  }

  // after the panes have got another size: the whole image stays whole, else its middle stays in the middle
  function resized() {
    if (fitted) return fit();
    const pane = panes[0].getBoundingClientRect();
    state.x += (pane.width - last.width) / 2;
    state.y += (pane.height - last.height) / 2;
    draw();
  }

  // about a point of a pane, in CSS px; by default its middle
  function zoom(scale, x, y) {
    const pane = panes[0].getBoundingClientRect();
    const [cx, cy] = x === undefined ? [pane.width / 2, pane.height / 2] : [x, y];
    const bounded = Math.min(32 * pixel(), Math.max(0.02, scale));
    state.x = cx - ((cx - state.x) * bounded) / state.scale;
    state.y = cy - ((cy - state.y) * bounded) / state.scale;
    state.scale = bounded;
    fitted = false;
    draw();
  }

  // the place of an event in the pane that it is in
  function place(event) {
    const pane = event.target.closest(".pane") ?? panes[0], corner = pane.getBoundingClientRect();
    return { x: event.clientX - corner.x, y: event.clientY - corner.y, corner };
  }

  const held = new Map();  // fingers and buttons that are down, by the id of the pointer
  const middle = () => {
    const all = [...held.values()];
    const [x, y] = ["x", "y"].map((name) => all.reduce((sum, one) => sum + one[name], 0) / all.length);
    return { x, y, apart: all.length < 2 ? 0 : Math.hypot(all[0].x - all[1].x, all[0].y - all[1].y) };
  };
  box.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || held.size === 2) return;
    held.set(event.pointerId, place(event));
    box.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  box.addEventListener("pointermove", (event) => {
    const one = held.get(event.pointerId);
    if (one === undefined) return;
    const before = middle();
    one.x = event.clientX - one.corner.x;
    one.y = event.clientY - one.corner.y;
    const now = middle();
    fitted = false;
    state.x += now.x - before.x;
    state.y += now.y - before.y;
    if (before.apart > 0 && now.apart > 0) zoom((state.scale * now.apart) / before.apart, now.x, now.y);
    else draw();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    box.addEventListener(name, (event) => held.delete(event.pointerId));
  }
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    const at = place(event);
    zoom(state.scale * 2 ** (-event.deltaY / 240), at.x, at.y);
  }, { passive: false });
  box.addEventListener("dblclick", (event) => {
    if (Math.abs(state.scale / fitting(panes[0].getBoundingClientRect()) - 1) > 0.01) return fit();
    const at = place(event);
    zoom(pixel(), at.x, at.y);
  });
  return { state, draw, fit, resized, zoom, pixel };
}
