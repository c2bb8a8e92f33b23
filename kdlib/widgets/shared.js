// What all widgets share. The text of this file stands in front of each of them.

export function softmax(logits, temperature = 1) {
  const top = Math.max(...logits);
  const raised = logits.map(z => Math.exp((z - top) / temperature));
  const sum = raised.reduce((a, b) => a + b, 0);
  return raised.map(e => e / sum);
}

// Bytes arrive as a DataView whose start need not be a multiple of four.
export function floats(view) {
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

function bytes(view) {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function html(tag, attributes = {}, ...children) {
  return put(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return put(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// The frame of a widget: its name for a screen reader, colours, what to do, where it runs.
function frame(el, data, advice) {
  const root = html("div", { class: "kdlib-moving", role: "group", "aria-label": data.title });
  for (const [name, colour] of Object.entries(data.palette)) {
    root.style.setProperty(`--${name}`, colour);
  }
  const caption = html("p", { class: "caption" }, `${advice} It runs in this page: once shown, it needs no kernel.`);
  el.append(root);
  return { root, finish: () => root.append(caption) };
}

// A labelled slider; `shown` writes its value, for the eye and for a screen reader.
function slider(label, { min, max, step, value, shown }, moved) {
  const input = html("input", { type: "range", min, max, step, value });
  const text = html("output");
  const write = () => {
    text.textContent = shown(input.valueAsNumber);
    input.setAttribute("aria-valuetext", text.textContent);
  };
  input.addEventListener("input", () => { write(); moved(input.valueAsNumber); });
  write();
  return {
    row: html("label", { class: "slider" }, html("span", {}, label), input, text),
    set(number) { input.value = number; write(); },
  };
}

function button(label, pressed) {
  const node = html("button", { type: "button" }, label);
  node.addEventListener("click", pressed);
  return node;
}

// Grey pixels, one byte each, on a canvas of their own size.
function picture(pixels, width, height, canvas = html("canvas")) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Bars of probabilities over the classes; `update(values)` moves them, the highest one coloured.
function bars(count, { width = 180, height = 90, name }) {
  const step = width / count;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height + 14}`, width, role: "img", "aria-label": name });
  const found = Array.from({ length: count }, (_, i) => {
    const bar = svg("rect", { x: i * step + 2, width: step - 4 });
    root.append(bar, svg("text", { x: (i + 0.5) * step, y: height + 11, class: "tick" }, String(i)));
    return bar;
  });
  root.append(svg("line", { x1: 0, x2: width, y1: height, y2: height, class: "axis" }));
  return {
    root,
    update(values) {
      const top = values.indexOf(Math.max(...values));
      found.forEach((bar, i) => put(bar, {
        y: height * (1 - values[i]), height: height * values[i], class: i === top ? "first" : "other",
      }, []));
      root.setAttribute("aria-label", `${name}: ${values.map((p, i) => `${i}: ${p.toFixed(2)}`).join(", ")}`);
    },
  };
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
