// The target alpha * softmax(logits / T) + (1 - alpha) * label.
export function mixed(logits, label, temperature, alpha) {
  return softmax(logits, temperature).map((p, i) => alpha * p + (1 - alpha) * (i === label));
}

const length = vector => Math.hypot(...vector);

// Lengths of the gradients of the parts of (1 - alpha) CE + alpha T² KL at the student's logits.
export function pulls(logits, student, label, temperature, alpha) {
  const [p, q] = [softmax(logits, temperature), softmax(student, temperature)];
  const hard = length(softmax(student).map((one, i) => one - (i === label)));
  const taught = alpha * temperature * length(q.map((one, i) => one - p[i]));
  return { labels: (1 - alpha) * hard, squared: taught, plain: taught / temperature ** 2 };
}

// The share of the teacher that is meant where T² is forgotten.
export function meant(temperature, alpha) {
  return alpha / (alpha + (1 - alpha) * temperature ** 2);
}

const WIDE = 350, HIGH = 160, LONG = 130;

function chart(count, label) {
  const step = WIDE / count, root = svg("svg", {
    viewBox: `-34 -8 ${WIDE + 38} ${HIGH + 30}`, width: WIDE + 38, role: "img",
  });
  const hatch = svg("pattern", { id: "kdlib-hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { width: 5, height: 5, class: "other" }), svg("line", { y2: 5, stroke: "currentColor", "stroke-width": 2 }));
  root.append(svg("defs", {}, hatch));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const y = HIGH * (1 - share);
    root.append(svg("line", { x2: WIDE, y1: y, y2: y, class: share ? "grid" : "axis" }),
      svg("text", { x: -30, y: y + 4 }, share.toFixed(2)));
  }
  const columns = Array.from({ length: count }, (_, i) => {
    const soft = svg("rect", { x: (i + 0.15) * step, width: 0.35 * step, class: "soft" });
    const hard = svg("rect", { x: (i + 0.5) * step, width: 0.35 * step, y: 0, height: i === label ? HIGH : 0, fill: "url(#kdlib-hatch)" });
    const line = svg("line", { x1: (i + 0.05) * step, x2: (i + 0.95) * step, class: "mixed" });
    root.append(soft, hard, line, svg("text", { x: (i + 0.5) * step, y: HIGH + 15, class: "tick" }, String(i)));
    return { soft, line };
  });
  return { root, update(soft, target) {
    columns.forEach((column, i) => {
      put(column.soft, { y: HIGH * (1 - soft[i]), height: HIGH * soft[i] }, []);
      put(column.line, { y1: HIGH * (1 - target[i]), y2: HIGH * (1 - target[i]) }, []);
    });
    root.setAttribute("aria-label", `mixed target: ${target.map((p, i) => `class ${i} ${p.toFixed(3)}`).join(", ")}`);
  } };
}

function arms(longest) {
  const root = svg("svg", { viewBox: `0 -26 ${LONG + 60} 156`, width: LONG + 60, role: "img" },
    svg("text", { y: -12, "font-weight": "bold" }, "length of the gradient"));
  const rows = [["labels", "the labels", "url(#kdlib-hatch)"], ["squared", "the teacher, with T²", "var(--blue)"],
    ["plain", "the teacher, T² forgotten", "var(--sky)"]].map(([key, name, fill], i) => {
    const bar = svg("rect", { y: 42 * i + 16, height: 16, fill, stroke: "currentColor" });
    const text = svg("text", { y: 42 * i + 28 });
    root.append(svg("text", { y: 42 * i + 11 }, name), bar, text);
    return { key, name, bar, text };
  });
  return { root, update(found) {
    for (const { key, bar, text } of rows) {
      const wide = LONG * found[key] / longest;
      bar.setAttribute("width", wide);
      text.setAttribute("x", wide + 6);
      text.textContent = found[key].toFixed(3);
    }
    root.setAttribute("aria-label", "lengths of gradients: " + rows.map(({ key, name }) => `${name} ${found[key].toFixed(3)}`).join(", "));
  } };
}

function render({ model, el }) {
  const data = model.get("data"), { logits, student, label } = data;
  let { temperature, alpha } = data;
  const { root, finish } = frame(el, data,
    "Blue: the teacher at T. Hatched: the label. Thick line: the target mixed of both. " +
    "The lengths say how hard each part of the loss pulls at the student's logits.");
  const temperatures = Array.from({ length: 63 }, (_, i) => 2 ** (i * Math.log2(data.hottest) / 62));
  const longest = Math.max(...temperatures.map(T => pulls(logits, student, label, T, 1).squared),
    pulls(logits, student, label, 1, 0).labels);
  const plot = chart(logits.length, label), lengths = arms(longest);
  const said = html("output", { "aria-live": "polite" });
  const digit = picture(bytes(data.image), data.shape[1], data.shape[0]);
  put(digit, { role: "img", "aria-label": `the image, its label is ${label}`, style: "width:96px" }, []);
  function update() {
    plot.update(softmax(logits, temperature), mixed(logits, label, temperature, alpha));
    lengths.update(pulls(logits, student, label, temperature, alpha));
    said.textContent = `With T² forgotten, α = ${alpha.toFixed(2)} acts like α′ = ${meant(temperature, alpha).toFixed(3)}.`;
  }
  const heat = slider("temperature T", { min: 0, max: Math.log2(data.hottest), step: 0.05, value: Math.log2(temperature), shown: x => `T = ${(2 ** x).toFixed(1)}` },
    x => { temperature = 2 ** x; update(); });
  const share = slider("teacher's share α", { min: 0, max: 1, step: 0.01, value: alpha, shown: x => `α = ${x.toFixed(2)}` },
    x => { alpha = x; update(); });
  root.append(html("div", { class: "across" }, html("div", {}, digit, html("div", {}, `label: ${label}`)), plot.root, lengths.root), heat.row, share.row, said);
  update();
  finish();
}

export default { render };
