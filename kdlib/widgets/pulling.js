const ROOT = Math.sqrt(2 * Math.PI);

const normal = (x, mean, width) => Math.exp(-0.5 * ((x - mean) / width) ** 2) / (width * ROOT);
const logNormal = (x, mean, width) => -0.5 * ((x - mean) / width) ** 2 - Math.log(width * ROOT);

// The mixture on its grid: {x, log} and the distance between points.
export function mixture({ weights, means, widths, left, right, edge, points }) {
  const step = (right - left + 2 * edge) / (points - 1);
  const x = Array.from({ length: points }, (_, i) => left - edge + i * step);
  const log = x.map(at => {
    const parts = weights.map((w, k) => Math.log(w) + logNormal(at, means[k], widths[k]));
    const top = Math.max(...parts);
    return top + Math.log(parts.reduce((sum, one) => sum + Math.exp(one - top), 0));
  });
  return { x, log, step };
}

// Both divergences in nats, each with its gradient for the mean and the logarithm of the width.
export function divergences({ x, log, step }, mean, width) {
  const forward = { value: 0, gradient: [0, 0] }, reverse = { value: 0, gradient: [0, 0] };
  x.forEach((at, i) => {
    const logQ = logNormal(at, mean, width), far = (at - mean) / width;
    const p = Math.exp(log[i]) * step, q = Math.exp(logQ) * step, ratio = logQ - log[i];
    const slopes = [far / width, far ** 2 - 1];  // of log q
    forward.value -= p * ratio;
    reverse.value += q * ratio;
    slopes.forEach((slope, k) => {
      forward.gradient[k] -= p * slope;
      reverse.gradient[k] += q * (ratio + 1) * slope;
    });
  });
  return { forward, reverse };
}

// One step downhill; the new [mean, width].
export function descended({ gradient }, mean, width, limits, rate = 0.15) {
  const norm = Math.hypot(...gradient), size = rate * Math.min(1, 1 / norm);
  const wide = width * Math.exp(-size * gradient[1]);
  return [mean - size * gradient[0], Math.min(limits[1], Math.max(limits[0], wide))];
}

const WIDE = 660, HIGH = 230, STEPS = 900, FLAT = 2e-3;

function render({ model, el }) {
  const data = model.get("data"), { left, right, limits } = data, grid = mixture(data);
  let { mean, width } = data, running = null;
  const { root, finish } = frame(el, data,
    "Drag the round handle: sideways for the mean, up and down for the width. An arrow shows where " +
    "a step downhill would move the peak: solid for forward, dashed for reverse KL.");
  // There is room for each part of the mixture at its full weight; a narrower q leaves at the top.
  const tallest = 1.1 * Math.max(...data.widths.map(one => 1 / (one * ROOT)));
  const X = at => (at - left) / (right - left) * WIDE, Y = density => HIGH * (1 - density / tallest);
  const curve = density => grid.x.flatMap(at => at >= left && at <= right ? [`${X(at).toFixed(1)},${Y(density(at)).toFixed(1)}`] : []).join(" ");
  const shown = new Map(grid.x.map((at, i) => [at, Math.exp(grid.log[i])]));
  const outline = curve(at => shown.get(at));
  const tip = kind => svg("marker", { id: `kdlib-${kind}`, viewBox: "0 0 10 10", refX: 7, refY: 5, markerWidth: 5, markerHeight: 5, orient: "auto-start-reverse" }, svg("path", { d: "M0 0L10 5L0 10z", class: kind }));
  const arrows = Object.fromEntries(["forward", "reverse"].map(kind => [kind, svg("line", { class: kind, "stroke-width": 3, "marker-end": `url(#kdlib-${kind})` })]));
  const q = svg("polyline", { class: "student" }), handle = svg("circle", { r: 8, class: "handle" });
  const plot = svg("svg", { viewBox: `-4 -14 ${WIDE + 8} ${HIGH + 36}`, class: "window", role: "img" },
    svg("defs", {}, tip("forward"), tip("reverse")),
    svg("polygon", { points: `0,${HIGH} ${outline} ${WIDE},${HIGH}`, class: "area" }),
    svg("polyline", { points: outline, class: "teacher" }),
    svg("line", { x2: WIDE, y1: HIGH, y2: HIGH, class: "axis" }), q, arrows.forward, arrows.reverse, handle);
  for (let at = Math.ceil(left); at <= right; at++) {
    if (at % 2 === 0) plot.append(svg("text", { x: X(at), y: HIGH + 16, class: "tick" }, String(at)));
  }
  data.means.forEach((at, k) => plot.append(svg("text", { x: X(at), y: Y(data.weights[k] / (data.widths[k] * ROOT)) - 6, class: "tick" }, "p")));
  const said = html("output", { "aria-live": "polite" });
  const signed = one => `${one < 0 ? "−" : "+"}${Math.abs(one).toFixed(2)}`;

  function update() {
    const found = divergences(grid, mean, width), peak = normal(mean, mean, width);
    const top = Math.max(0, Y(peak)), from = tallest * (1 - top / HIGH);
    q.setAttribute("points", curve(at => normal(at, mean, width)));
    put(handle, { cx: X(mean), cy: top }, []);
    for (const kind of ["forward", "reverse"]) {
      const { gradient } = found[kind], size = Math.min(1, 1.5 / Math.hypot(...gradient));
      const end = [X(mean - size * gradient[0]), Y(from * Math.exp(size * gradient[1]))];
      const flat = Math.hypot(end[0] - X(mean), end[1] - top) < 3;
      put(arrows[kind], { x1: X(mean), y1: top, x2: end[0], y2: end[1], visibility: flat ? "hidden" : "visible" }, []);
    }
    said.replaceChildren(...["forward", "reverse"].map(kind => {
      const { value, gradient } = found[kind];
      return html("div", { "data-kind": kind }, `${kind} KL ${value.toFixed(3)} nats, gradient: mean ${signed(gradient[0])}, log width ${signed(gradient[1])}`);
    }));
    middle.set(mean);
    spread.set(width);
    return found;
  }
  function move(m, s) {
    mean = Math.min(right, Math.max(left, m));
    width = Math.min(limits[1], Math.max(limits[0], s));
    return update();
  }
  function stop() {
    cancelAnimationFrame(running);
    running = null;
  }
  function descend(kind) {
    stop();
    let left = STEPS;
    const step = () => {
      const found = move(...descended(divergences(grid, mean, width)[kind], mean, width, limits));
      return --left && Math.hypot(...found[kind].gradient) > FLAT;
    };
    if (still()) { while (step()); return; }
    const next = () => { running = step() ? requestAnimationFrame(next) : null; };
    next();
  }
  const middle = slider("mean of q", { min: left, max: right, step: 0.01, value: mean, shown: x => x.toFixed(2) }, x => { stop(); move(x, width); });
  const spread = slider("width of q", { min: limits[0], max: limits[1], step: 0.01, value: width, shown: x => x.toFixed(2) }, x => { stop(); move(mean, x); });
  handle.addEventListener("pointerdown", event => { stop(); handle.setPointerCapture(event.pointerId); });
  handle.addEventListener("pointermove", event => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(plot.getScreenCTM().inverse());
    const density = Math.max(1e-3, tallest * (1 - at.y / HIGH));
    move(left + at.x / WIDE * (right - left), 1 / (density * ROOT));
  });
  root.append(plot, said, middle.row, spread.row, html("div", {},
    button("Descend forward KL", () => descend("forward")), button("Descend reverse KL", () => descend("reverse")), button("Stop", stop)));
  update();
  finish();
  return stop;
}

export default { render };
