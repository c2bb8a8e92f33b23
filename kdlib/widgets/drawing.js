const SIDE = 28, BOX = 20, PAD = 280, PEN = 11;

// The weights of a network as arrays; each layer [outputs, inputs], row by row.
export function unpacked(layers) {
  return layers.map(({ inputs, outputs, weight, bias }) => ({ inputs, outputs, weight: floats(weight), bias: floats(bias) }));
}

// Linear layers with ReLU between them: pixels -> logits.
export function answer(layers, pixels) {
  let signal = pixels;
  layers.forEach(({ inputs, outputs, weight, bias }, depth) => {
    const next = new Float64Array(outputs);
    for (let row = 0; row < outputs; row++) {
      let sum = bias[row];
      for (let i = 0, at = row * inputs; i < inputs; i++) sum += weight[at + i] * signal[i];
      next[row] = depth < layers.length - 1 ? Math.max(0, sum) : sum;
    }
    signal = next;
  });
  return Array.from(signal);
}

// Ink [side * side] from 0 to 1 as MNIST has it: the longer side of its box 20 pixels, moved by
// whole pixels until its centre of mass lies in pixel (14, 14) of 28 x 28, counted from 0. Each
// pixel is the mean of the ink that it covers.
export function centred(ink, side) {
  let left = side, right = -1, top = side, bottom = -1, mass = 0, x0 = 0, y0 = 0;
  ink.forEach((value, at) => {
    if (value <= 0) return;
    const x = at % side, y = Math.floor(at / side);
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
    mass += value;
    x0 += value * (x + 0.5);
    y0 += value * (y + 0.5);
  });
  const pixels = new Float32Array(SIDE * SIDE);
  if (!mass) return pixels;
  const scale = Math.max(right - left + 1, bottom - top + 1) / BOX;  // of the drawing, for a pixel
  const shift = (centre, start) => SIDE / 2 - Math.floor((centre - start) / scale);
  const [across, down] = [shift(x0 / mass, left), shift(y0 / mass, top)];
  const covered = (start, end) => {
    const found = [];
    for (let i = Math.max(0, Math.floor(start)); i < Math.min(side, end); i++) {
      found.push([i, Math.min(end, i + 1) - Math.max(start, i)]);
    }
    return found;
  };
  for (let row = 0; row < SIDE; row++) {
    const y = top + (row - down) * scale, rows = covered(y, y + scale);
    for (let column = 0; column < SIDE; column++) {
      const x = left + (column - across) * scale;
      let sum = 0;
      for (const [i, share] of covered(x, x + scale)) {
        for (const [j, part] of rows) sum += share * part * ink[j * side + i];
      }
      pixels[row * SIDE + column] = sum / scale ** 2;
    }
  }
  return pixels;
}

// A field for pointer and keyboard; `drawn(ink)` hears each stroke.
function field(drawn) {
  const canvas = html("canvas", {
    class: "pad", width: PAD, height: PAD, tabindex: 0, role: "application",
    "aria-label": "Field for a digit. Arrow keys move the pen, the space bar puts it down and lifts it, Delete clears.",
  });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const mark = html("span", { class: "pen", "aria-hidden": "true" });  // where the keyboard draws
  let x = PAD / 2, y = PAD / 2, down = false, held = false;
  function clear() {
    pen.fillStyle = "black";
    pen.fillRect(0, 0, PAD, PAD);
    down = false;
  }
  function line(toX, toY, inked) {
    if (inked) {
      Object.assign(pen, { strokeStyle: "white", lineWidth: 2 * PEN, lineCap: "round", lineJoin: "round" });
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(toX, toY);
      pen.stroke();
    }
    [x, y] = [toX, toY];
    mark.setAttribute("style", `left:${100 * x / PAD}%;top:${100 * y / PAD}%`);
    mark.classList.toggle("down", down || held);
    if (inked) drawn(Float32Array.from({ length: PAD * PAD }, pixel(pen.getImageData(0, 0, PAD, PAD).data)));
  }
  const pixel = data => (_, i) => data[4 * i] / 255;
  const place = event => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * PAD / box.width, (event.clientY - box.top) * PAD / box.height];
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    [x, y] = place(event);
    held = true;
    line(x, y, true);
  });
  canvas.addEventListener("pointermove", event => held && line(...place(event), true));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = false; });
  const ways = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
  canvas.addEventListener("keydown", event => {
    const way = ways[event.key], inside = one => Math.min(PAD - PEN, Math.max(PEN, one));
    if (way) line(inside(x + way[0]), inside(y + way[1]), down);
    else if (event.key === " ") { down = !down; line(x, y, down); }
    else if (event.key === "Delete" || event.key === "Backspace") { clear(); drawn(null); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  clear();
  return { node: html("div", { class: "field" }, canvas, mark), clear, show(source) { clear(); pen.imageSmoothingEnabled = false; pen.drawImage(source, 0, 0, PAD, PAD); } };
}

function render({ model, el }) {
  const data = model.get("data");
  const { root, finish } = frame(el, data, "Draw a digit with the pointer or with the arrow keys and the space bar, or choose a test image.");
  const seen = html("canvas", { style: "width:112px", role: "img", "aria-label": "the 28 x 28 pixels that the networks see" });
  const rows = data.networks.map(({ name, layers }) => {
    const network = unpacked(layers), plot = bars(network.at(-1).outputs, { name });
    const first = html("output", { class: "answer", "aria-live": "polite" });
    return { network, plot, first, node: html("figure", { class: "reader" }, html("figcaption", {}, name), first, plot.root) };
  });
  function read(pixels) {
    picture(Uint8Array.from(pixels, value => Math.round(255 * value)), SIDE, SIDE, seen);
    const ink = pixels.some(value => value > 0);
    for (const { network, plot, first } of rows) {
      const found = softmax(answer(network, pixels));
      plot.update(ink ? found : found.map(() => 0));
      first.textContent = ink ? String(found.indexOf(Math.max(...found))) : "–";
    }
  }
  const pad = field(ink => read(ink ? centred(ink, PAD) : new Float32Array(SIDE * SIDE)));
  const images = data.examples.map(view => bytes(view));
  function example(pixels) {
    pad.show(picture(pixels, SIDE, SIDE));
    read(Float32Array.from(pixels, value => value / 255));
  }
  const thumbs = images.map((pixels, i) => {
    const node = button("", () => example(pixels));
    node.append(picture(pixels, SIDE, SIDE));
    return put(node, { class: "thumb", "aria-label": `test image ${i + 1}` }, []);
  });
  const wipe = button("Clear", () => { pad.clear(); read(new Float32Array(SIDE * SIDE)); });
  root.append(html("div", { class: "across" },
    html("div", {}, pad.node, wipe, html("div", {}, "the networks see"), seen),
    html("div", { class: "answers" }, ...rows.map(row => row.node)),
    html("div", { class: "thumbs", role: "group", "aria-label": "test images" }, ...thumbs)));
  example(images[0]);
  finish();
}

export default { render };
