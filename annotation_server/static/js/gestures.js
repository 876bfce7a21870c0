// Mouse, wheel and fingers on the panes: wheel and pinch zoom where they are, a drag pans, a double click toggles
// between fit and 1:1; while marking, a click sets a point and a drag draws a box. Not here: keys (the page's own).

const STILL = 4; // CSS pixels within which a press is a click
const LINE = 16; // of a wheel that counts in lines
const WHEEL = 0.0022;
const PINCH = 0.012; // a touchpad's pinch arrives as a wheel with Ctrl, in smaller steps

// `stage` holds the panes; `viewer` is asked for paneAt(element), view, zoomAt, panBy, toggle and marks.
export function listen(stage, viewer) {
  const pressed = new Map();
  let pane = null;
  let rect = null;
  let start = null;
  let moved = false;
  let pinched = false;

  const local = (point) => [point.x - rect.left, point.y - rect.top];
  const middle = () => {
    const points = [...pressed.values()];
    const sum = (name) => points.reduce((total, point) => total + point[name], 0) / points.length;
    const [first, second] = points;
    return { x: sum("x"), y: sum("y"), apart: second ? Math.hypot(first.x - second.x, first.y - second.y) : 0 };
  };

  stage.addEventListener("wheel", (event) => {
    const found = viewer.paneAt(event.target);
    if (!found) return;
    event.preventDefault();
    const box = found.area.getBoundingClientRect();
    const amount = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : LINE);
    const factor = Math.exp(-Math.max(-240, Math.min(240, amount)) * (event.ctrlKey ? PINCH : WHEEL));
    viewer.zoomAt(found, event.clientX - box.left, event.clientY - box.top, factor);
  }, { passive: false });

  stage.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("button, [role=slider]")) return;
    const found = viewer.paneAt(event.target);
    if (!found) return;
    if (!pressed.size) {
      pane = found;
      rect = pane.area.getBoundingClientRect();
      moved = pinched = false;
      start = { x: event.clientX, y: event.clientY };
    } else {
      moved = pinched = true; // a second finger: a pinch, whatever the first had begun
      viewer.marks.cancel();
    }
    pressed.set(event.pointerId, { x: event.clientX, y: event.clientY });
    found.area.setPointerCapture(event.pointerId);
  });

  stage.addEventListener("pointermove", (event) => {
    if (!pressed.has(event.pointerId)) return;
    const before = middle();
    pressed.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const now = middle();
    if (!moved && Math.hypot(now.x - start.x, now.y - start.y) < STILL) return;
    const first = !moved;
    moved = true;
    if (!pinched && viewer.marks.mode === "box" && pane.letter) {
      const corner = pane.fractions(viewer.view, ...local(start));
      return viewer.marks.drag(pane, corner, pane.fractions(viewer.view, ...local(now)));
    }
    const from = first ? start : before;
    viewer.panBy(now.x - from.x, now.y - from.y, pane);
    if (before.apart) viewer.zoomAt(pane, ...local(now), now.apart / before.apart);
  });

  for (const kind of ["pointerup", "pointercancel"]) {
    stage.addEventListener(kind, (event) => {
      if (!pressed.delete(event.pointerId) || pressed.size) return;
      if (kind === "pointercancel") viewer.marks.cancel();
      else if (moved) viewer.marks.drop(pane, viewer.view);
      else if (viewer.marks.mode === "point" && pane.letter) {
        viewer.marks.point(pane, ...pane.fractions(viewer.view, ...local(start)));
      }
    });
  }

  stage.addEventListener("dblclick", (event) => {
    const found = viewer.paneAt(event.target);
    if (!found || viewer.marks.mode || event.target.closest("button, [role=slider]")) return;
    const box = found.area.getBoundingClientRect();
    viewer.toggle(found, event.clientX - box.left, event.clientY - box.top);
  });
}
