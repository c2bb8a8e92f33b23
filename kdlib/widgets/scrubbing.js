// The line on which a square grid of bytes passes one half, as the "d" of an SVG path; the first
// coordinate of `cells` runs slowest and points right, the second one up. Marching squares: each
// cell adds a piece of line, and pieces that share an end are joined, so that dashes show.
export function contour(cells, side, size) {
  const value = (i, j) => cells[i * side + j] - 127.5, unit = size / (side - 1), beside = new Map();
  const join = (one, other) => beside.set(one, [...(beside.get(one) ?? []), other]);
  const crossing = ([i, j], [k, l]) => {
    const share = value(i, j) / (value(i, j) - value(k, l));
    return `${((i + share * (k - i)) * unit).toFixed(1)} ${(size - (j + share * (l - j)) * unit).toFixed(1)}`;
  };
  for (let i = 0; i < side - 1; i++) {
    for (let j = 0; j < side - 1; j++) {
      const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
      const found = corners.flatMap((corner, k) => {
        const next = corners[(k + 1) % 4];
        return value(...corner) > 0 !== value(...next) > 0 ? [crossing(corner, next)] : [];
      });
      for (let k = 0; k < found.length; k += 2) {
        join(found[k], found[k + 1]);
        join(found[k + 1], found[k]);
      }
    }
  }
  const follow = start => {
    const path = [start];
    for (let next; (next = beside.get(path.at(-1)).pop()); path.push(next)) {
      beside.set(next, beside.get(next).filter(one => one !== path.at(-1)));
    }
    return path.length > 1 ? `M${path.join("L")}` : "";
  };
  const ends = [...beside.keys()].filter(one => beside.get(one).length === 1);
  return [...ends, ...beside.keys()].map(follow).join("");  // open lines from an end, then rings
}

// The share of the cells, in percent, at which two networks answer another class.
export function differs(one, other) {
  let count = 0;
  one.forEach((value, i) => { count += value > 127 !== other[i] > 127; });
  return 100 * count / one.length;
}

const SIZE = 300, WIDE = 520, HIGH = 90, EVERY = 120;  // the last in milliseconds

function panel({ name, colour, frames }, data, teacher) {
  const { side, edge } = data, cells = side ** 2, all = bytes(frames);
  const at = frame => all.subarray(frame * cells, (frame + 1) * cells);
  // A pixel of the shade is centred on its point of the grid, so the outer ones reach over the edge.
  const pixel = SIZE / (side - 1), whole = `${side * pixel}px`, over = `${-pixel / 2}px`;
  const style = `width:${whole};height:${whole};left:${over};top:${over}`;
  const shade = html("canvas", { width: side, height: side, style });
  const line = svg("path", { fill: "none", stroke: colour, "stroke-width": 3 });
  const place = one => SIZE * (one - edge[0]) / (edge[1] - edge[0]);
  const points = floats(data.points), dots = data.labels.map((label, i) => svg("circle", {
    cx: place(points[2 * i]), cy: SIZE - place(points[2 * i + 1]), r: 3.5, stroke: label ? "black" : "white", fill: label ? "white" : "black",
  }));
  const plot = svg("svg", { width: SIZE, height: SIZE, style: "position:relative", role: "img" },
    svg("rect", { width: SIZE, height: SIZE, fill: "none", class: "axis" }),
    svg("path", { d: contour(teacher, side, SIZE), class: "teacher dashed" }), line, ...dots);
  const text = html("div"), pixels = new ImageData(side, side);
  const distance = data.steps.map((_, frame) => differs(at(frame), teacher));
  return {
    name, colour, distance,
    node: html("figure", {}, html("figcaption", {}, name), html("div", { class: "square", style: `width:${SIZE}px` }, shade, plot), text),
    show(frame) {
      const found = at(frame);
      found.forEach((value, i) => {
        const x = Math.floor(i / side), y = side - 1 - i % side;
        pixels.data.set([86, 180, 233, value > 127 ? 255 : 0], 4 * (y * side + x));
      });
      shade.getContext("2d").putImageData(pixels, 0, 0);
      line.setAttribute("d", contour(found, side, SIZE));
      text.textContent = `${distance[frame].toFixed(1)} % of the square differs from the teacher`;
      plot.setAttribute("aria-label", `${name}: ${text.textContent}`);
    },
  };
}

function curves(panels, steps) {
  const last = steps.at(-1), X = step => WIDE * step / last;
  const most = Math.max(1, ...panels.flatMap(one => one.distance)), Y = share => HIGH * (1 - share / most);
  const cursor = svg("line", { y2: HIGH, class: "axis" });
  const lines = panels.map(({ colour, distance }, i) => svg("polyline", {
    points: distance.map((share, k) => `${X(steps[k]).toFixed(1)},${Y(share).toFixed(1)}`).join(" "),
    fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-dasharray": i ? "none" : "6 3",
  }));
  const names = panels.map(({ name, distance }) => svg("text", { x: WIDE + 4, y: Y(distance.at(-1)) + 4 }, name));
  const root = svg("svg", { viewBox: `-34 -8 ${WIDE + 94} ${HIGH + 26}`, width: WIDE + 94, role: "img", "aria-label": "percent of the square that differs from the teacher, over the steps of training" },
    svg("line", { x2: WIDE, y1: HIGH, y2: HIGH, class: "axis" }), svg("text", { x: -30, y: 8 }, `${most.toFixed(0)} %`), svg("text", { x: -30, y: HIGH }, "0 %"),
    svg("text", { x: WIDE, y: HIGH + 14, class: "tick" }, `step ${last}`), cursor, ...lines, ...names);
  return { root, show: frame => put(cursor, { x1: X(steps[frame]), x2: X(steps[frame]) }, []) };
}

function render({ model, el }) {
  const data = model.get("data"), { steps } = data, teacher = bytes(data.teacher);
  const { root, finish } = frame(el, data,
    "Dashed: the teacher's boundary. Solid: the student's. The curves below show how much of the square differs.");
  const panels = data.students.map(student => panel(student, data, teacher)), plot = curves(panels, steps);
  let frameNow = 0, timer = null;
  function show(frame) {
    frameNow = frame;
    for (const part of [...panels, plot]) part.show(frame);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }
  const time = slider("step of training", { min: 0, max: steps.length - 1, step: 1, value: 0, shown: i => `step ${steps[i]}` }, frame => { stop(); show(frame); });
  function onward() {
    if (frameNow === steps.length - 1) { stop(); return; }
    show(frameNow + 1);
    time.set(frameNow);
  }
  const play = button("Play", () => {
    if (timer !== null) { stop(); return; }
    if (frameNow === steps.length - 1) { show(0); time.set(0); }
    timer = setInterval(onward, EVERY);
    play.textContent = "Pause";
  });
  root.append(html("div", { class: "across" }, ...panels.map(one => one.node)), time.row, html("div", {}, play), plot.root);
  show(0);
  finish();
  return stop;
}

export default { render };
