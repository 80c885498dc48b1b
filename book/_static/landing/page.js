// The landing page: pick or draw a digit, choose a budget, and watch its ink walk until a network
// misreads it. All that is computed is in attack.js; here it is asked, drawn and said.

(() => {
  "use strict";
  const { SIDE, PIXELS, networks, digits } = MovingMass;
  const STEPS = 40, FIRST = 5, BUDGET = 0.15, LARGEST = 0.6;
  const SLICE = 24, TICK = 40; // milliseconds: of computing between two pictures, and of a step shown
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const here = document.currentScript.src.replace(/page\.js.*/, "");
  const place = document.querySelector("#fig-break")?.closest(".cell"); // the picture of a page without scripts
  if (!place) return;

  const choice = (group, value, inner, title) =>
    `<label title="${title}"><input type="radio" name="${group}" value="${value}">${inner}</label>`;
  const root = document.createElement("section");
  root.className = "break";
  root.setAttribute("aria-label", "Break a digit");
  root.innerHTML = `
    <fieldset class="break-digits"><legend>Pick a digit, or draw one</legend>
      ${digits.map((d, k) => choice("break-digit", k, `<canvas width="28" height="28" role="img" aria-label="a ${d.label}"></canvas>`, `A ${d.label}`)).join("")}
      ${choice("break-digit", "draw", "<span>Draw</span>", "Draw your own")}
    </fieldset>
    <div class="break-stage">
      <figure><canvas data-part="moves" role="img"></canvas><figcaption>Where its ink goes</figcaption></figure>
      <figure><canvas data-part="image" role="img"></canvas><figcaption>What the network sees</figcaption></figure>
      <ol class="break-bars" aria-label="The network's probabilities">
        ${Array.from({ length: 10 }, (_, k) => `<li><b>${k}</b><i><s></s></i><span></span></li>`).join("")}
      </ol>
    </div>
    <p class="break-verdict"><strong data-part="verdict" aria-live="polite"></strong> <span data-part="spent"></span></p>
    <div class="break-controls">
      <label class="break-slider"><span>Budget <em>ε</em></span>
        <input data-part="eps" type="range" min="0" max="${LARGEST}" step="0.01" value="${BUDGET}">
        <output data-part="budget"></output></label>
      <label class="break-slider"><span>Step</span>
        <input data-part="step" type="range" min="0" max="${STEPS}" step="1" value="${STEPS}">
        <output data-part="at"></output></label>
      <fieldset class="break-networks"><legend>Network</legend>
        ${networks.map((n, k) => choice("break-network", k, `<span>${n.title}</span>`, n.name)).join("")}
      </fieldset>
      <div class="break-buttons">
        <button type="button" data-part="play">Play the steps</button>
        <button type="button" data-part="go" hidden>Break it</button>
        <button type="button" data-part="clear" hidden>Clear</button>
      </div>
    </div>`;
  const parts = {};
  root.querySelectorAll("[data-part]").forEach((e) => (parts[e.dataset.part] = e));
  const bars = [...root.querySelectorAll(".break-bars li")];

  // --- what is shown: a digit with its label, a network, the frames of an attack

  const state = { digit: FIRST, network: 0, image: null, label: 0, frames: [], drawing: false, strokes: [], pen: null };
  const loaded = {};
  const eps = () => Number(parts.eps.value);

  function load(k) {
    const { name } = networks[k];
    loaded[name] ??= new Promise((done, failed) => {
      const ready = () => done(MovingMass.network(MovingMass.weights[name]));
      if (MovingMass.weights[name]) return ready();
      const script = Object.assign(document.createElement("script"), { src: `${here}${name}.js`, onload: ready, onerror: failed });
      document.head.append(script);
    });
    return loaded[name];
  }

  // Runs the attack in slices, so that the page stays alive; the last call wins.
  let job = 0, playing = 0;
  async function run(play) {
    const mine = ++job;
    cancelAnimationFrame(playing);
    root.setAttribute("aria-busy", "true");
    const layers = await load(state.network).catch(() => (parts.verdict.textContent = "The network could not be loaded."));
    if (mine !== job || typeof layers === "string") return;
    if (state.drawing) return sketch(layers);
    if (state.digit === "draw") state.label = MovingMass.largest(MovingMass.read(layers, state.image));
    const budget = eps(), frames = [], climb = MovingMass.climb(layers, state.image, state.label, budget, { steps: STEPS });
    const slice = () => {
      if (mine !== job) return;
      for (const end = performance.now() + SLICE; performance.now() < end; ) {
        const { value, done } = climb.next();
        if (done) return finish(frames, budget, play);
        frames.push(value);
      }
      show(play ? frames[0] : frames.at(-1), budget, play ? 0 : frames.length - 1);
      requestAnimationFrame(slice);
    };
    slice();
  }

  function finish(frames, budget, play) {
    state.frames = frames;
    root.removeAttribute("aria-busy");
    say();
    if (!play || still.matches) return show(frames.at(-1), budget, STEPS);
    const start = performance.now();
    const tick = (now) => {
      const t = Math.min(Math.floor((now - start) / TICK), STEPS);
      show(frames[Math.max(t, 0)], budget, Math.max(t, 0));
      if (t < STEPS) playing = requestAnimationFrame(tick);
    };
    playing = requestAnimationFrame(tick);
  }

  // --- what is said

  const percent = (p) => (p > 0.995 && p < 1 ? "over\u00a099\u00a0%" : `${Math.round(100 * p)}\u00a0%`);

  function say() {
    const [clean, end] = [state.frames[0], state.frames.at(-1)];
    const sure = percent(end.probabilities[end.reads]);
    parts.verdict.textContent = clean.broken
      ? `The network misreads this ${state.label} as it is: it reads ${clean.reads}.`
      : end.broken
        ? `Broken. The network takes this ${state.label} for a ${end.reads} (${sure}).`
        : `It holds. The network still reads ${state.label} (${sure}).`;
  }

  function show(frame, budget, step) {
    Object.assign(state, { shown: frame, budget });
    const moves = frame.moves ? MovingMass.listed(frame.moves, 1e-7) : [];
    const moved = moves.reduce((t, m) => t + (m.cost ? m.mass : 0), 0);
    parts.budget.textContent = `${budget.toFixed(2)} pixels`;
    parts.at.textContent = `${step} of ${STEPS}`;
    parts.step.value = step;
    parts.spent.textContent = moved > 5e-4
      ? `${(100 * moved).toFixed(0)} % of the ink moved, ${(frame.cost / moved).toFixed(1)} pixels on average; ${frame.cost.toFixed(2)} of ${budget.toFixed(2)} spent.`
      : "No ink has moved.";
    parts.spent.style.setProperty("--spent", budget ? frame.cost / budget : 0);
    probabilities(frame.probabilities);
    paint(frame.image, moves);
    parts.image.setAttribute("aria-label", `The attacked digit, which the network reads as ${frame.reads}`);
    parts.moves.setAttribute("aria-label", `The digit, ${state.label}, with arrows along which ${(100 * moved).toFixed(0)} percent of its ink moves`);
  }

  function probabilities(p) {
    const most = MovingMass.largest(p);
    bars.forEach((bar, k) => {
      bar.className = k === most ? (k === state.label ? "right" : "wrong") : "";
      bar.querySelector("s").style.width = `${100 * p[k]}%`;
      bar.querySelector("span").textContent = `${Math.round(100 * p[k])} %`;
    });
  }

  // --- what is drawn

  function sized(canvas) {
    const scale = Math.min(devicePixelRatio || 1, 3), size = Math.max(Math.round(canvas.clientWidth * scale), SIDE);
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const pen = canvas.getContext("2d");
    pen.setTransform(size / SIDE, 0, 0, size / SIDE, 0, 0);
    pen.clearRect(0, 0, SIDE, SIDE);
    return pen;
  }

  // By way of a canvas of one dot a pixel: no seams between them.
  const dots = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE }).getContext("2d");
  function pixels(pen, values, colour) {
    dots.clearRect(0, 0, SIDE, SIDE);
    dots.fillStyle = colour;
    values.forEach((v, i) => {
      dots.globalAlpha = Math.min(Math.max(v, 0), 1);
      dots.fillRect(i % SIDE, Math.floor(i / SIDE), 1, 1);
    });
    pen.imageSmoothingEnabled = false;
    pen.drawImage(dots.canvas, 0, 0, SIDE, SIDE);
  }

  function colours() {
    const style = getComputedStyle(root);
    return Object.fromEntries(["ink", "source", "target", "moved"].map((n) => [n, style.getPropertyValue(`--${n}`).trim()]));
  }

  function paint(image, moves) {
    const { ink, source, target, moved } = colours(), x = state.image;
    pixels(sized(parts.image), image, ink);
    const pen = sized(parts.moves);
    pixels(pen, x.map((v, i) => 0.3 * Math.min(v, image[i])), ink);
    pixels(pen, x.map((v, i) => 0.85 * (v - image[i])), source);
    pixels(pen, x.map((v, i) => 0.85 * (image[i] - v)), target);
    arrows(pen, moves, moved);
  }

  // Where each pixel's moving ink goes on average; of pixels that send next to nothing none.
  function arrows(pen, moves, colour) {
    const sent = new Map();
    for (const { from, to, mass, cost } of moves) {
      if (!cost) continue;
      const key = from[0] * SIDE + from[1], known = sent.get(key) ?? [0, 0, 0];
      sent.set(key, [known[0] + mass, known[1] + mass * (to[0] - from[0]), known[2] + mass * (to[1] - from[1])]);
    }
    const most = Math.max(...[...sent.values()].map((s) => s[0]), 1e-9);
    Object.assign(pen, { strokeStyle: colour, fillStyle: colour, lineWidth: 0.16, lineCap: "round" });
    for (const [key, [mass, down, right]] of sent) {
      const length = Math.hypot(down, right) / mass;
      if (mass < 0.12 * most || length < 0.5) continue;
      const y = Math.floor(key / SIDE) + 0.5, x = (key % SIDE) + 0.5, v = y + down / mass, u = x + right / mass;
      const turn = Math.atan2(v - y, u - x), head = 0.55;
      pen.globalAlpha = Math.min(0.35 + (0.65 * mass) / most, 1);
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(u - 0.4 * head * Math.cos(turn), v - 0.4 * head * Math.sin(turn));
      pen.stroke();
      pen.beginPath();
      for (const bend of [0, 2.65, -2.65]) pen.lineTo(u + (bend ? head * Math.cos(turn + bend) : 0), v + (bend ? head * Math.sin(turn + bend) : 0));
      pen.fill();
    }
    pen.globalAlpha = 1;
  }

  // --- drawing a digit, by pointer or with arrows and the space bar

  // Strokes as a 28x28 picture; `fit`: 20 pixels tall or wide, its ink's centre in the middle, as
  // the digits of MNIST are.
  function raster(strokes, fit) {
    const image = new Float64Array(PIXELS), axes = [0, 1];
    const all = axes.map((a) => strokes.flat().map((p) => p[a]));
    const low = all.map((c) => Math.min(...c)), high = all.map((c) => Math.max(...c));
    const scale = fit ? Math.min(18 / Math.max(high[0] - low[0], high[1] - low[1], 9), 2) : 1;
    let shift = axes.map((a) => (fit ? 14 - (scale * (low[a] + high[a])) / 2 : 0));
    const middle = (i) => [Math.floor(i / SIDE) + 0.5, (i % SIDE) + 0.5];
    const ink = () => {
      image.fill(0);
      for (const stroke of strokes)
        stroke.forEach((_, k) => {
          const [a, b] = [stroke[Math.max(k - 1, 0)], stroke[k]].map((p) => axes.map((c) => scale * p[c] + shift[c]));
          const along = [b[0] - a[0], b[1] - a[1]], square = along[0] ** 2 + along[1] ** 2;
          for (let i = 0; i < PIXELS; i++) {
            const [y, x] = middle(i), t = square && ((y - a[0]) * along[0] + (x - a[1]) * along[1]) / square;
            const at = Math.min(Math.max(t, 0), 1), far = Math.hypot(y - a[0] - at * along[0], x - a[1] - at * along[1]);
            image[i] = Math.max(image[i], Math.min(Math.max(1.75 - far, 0), 1));
          }
        });
      return image;
    };
    const mass = ink().reduce((t, v) => t + v, 0);
    if (!fit || !mass) return image;
    const centre = axes.map((a) => image.reduce((t, v, i) => t + (v * middle(i)[a]) / mass, 0));
    shift = shift.map((s, a) => s + Math.round(14 - centre[a]));
    return ink();
  }

  function sketch(layers) {
    root.removeAttribute("aria-busy");
    const { ink, moved } = colours(), pen = sized(parts.moves);
    pixels(pen, raster(state.strokes), ink);
    const cursor = state.cursor;
    if (cursor) {
      Object.assign(pen, { strokeStyle: moved, lineWidth: 0.2 });
      pen.strokeRect(cursor[1] - 1, cursor[0] - 1, 2, 2);
    }
    state.image = raster(state.strokes, true);
    pixels(sized(parts.image), state.image, ink);
    const empty = !state.strokes.length, p = empty ? new Float64Array(10) : MovingMass.read(layers, state.image);
    state.label = MovingMass.largest(p);
    probabilities(p);
    if (empty) bars.forEach((bar) => (bar.className = ""));
    parts.verdict.textContent = empty ? "Draw a digit in the left square." : `The network reads ${state.label} (${percent(p[state.label])}).`;
    parts.spent.textContent = empty
      ? "With the keyboard: arrows move the pen, the space bar puts it down and lifts it."
      : "Break it when you are done.";
    parts.spent.style.setProperty("--spent", 0);
    parts.go.disabled = empty;
    parts.moves.setAttribute("aria-label", "Draw here. Arrow keys move the pen, space puts it down and lifts it.");
  }

  function drawing(on) {
    state.drawing = on;
    root.classList.toggle("drawing", on);
    root.querySelector("figcaption").textContent = on ? "Draw here" : "Where its ink goes";
    parts.moves.tabIndex = on ? 0 : -1;
    parts.moves.setAttribute("role", on ? "application" : "img");
    parts.go.hidden = !on;
    parts.clear.hidden = state.digit !== "draw";
    parts.play.hidden = on || still.matches;
    parts.step.disabled = on;
  }

  const point = (event) => {
    const box = parts.moves.getBoundingClientRect();
    return [((event.clientY - box.top) / box.height) * SIDE, ((event.clientX - box.left) / box.width) * SIDE];
  };

  parts.moves.addEventListener("pointerdown", (event) => {
    if (!state.drawing) return;
    parts.moves.setPointerCapture(event.pointerId);
    state.cursor = null;
    state.strokes.push((state.pen = [point(event)]));
    run();
  });
  parts.moves.addEventListener("pointermove", (event) => {
    if (!state.drawing || !state.pen || !event.buttons) return;
    const last = state.pen.at(-1), next = point(event);
    if (Math.hypot(next[0] - last[0], next[1] - last[1]) > 0.7) state.pen.push(next), run();
  });
  for (const end of ["pointerup", "pointercancel"]) parts.moves.addEventListener(end, () => (state.pen = null));
  parts.moves.addEventListener("keydown", (event) => {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], " ": [0, 0] }[event.key];
    if (!state.drawing || !way) return;
    event.preventDefault();
    state.cursor = (state.cursor ?? [14, 14]).map((c, a) => Math.min(Math.max(c + way[a], 3), SIDE - 3));
    if (event.key === " ") state.pen = state.pen ? null : (state.strokes.push([state.cursor]), state.strokes.at(-1));
    else state.pen?.push(state.cursor);
    run();
  });

  // --- what is chosen

  function pick(value) {
    state.digit = value === "draw" ? value : Number(value);
    if (value === "draw") return clear();
    Object.assign(state, { image: MovingMass.picture(digits[value].pixels), label: digits[value].label });
    drawing(false);
    run(true);
  }

  function clear() {
    Object.assign(state, { strokes: [], pen: null, cursor: null });
    drawing(true);
    run();
  }

  root.addEventListener("change", ({ target }) => {
    if (target.name === "break-digit") pick(target.value);
    if (target.name === "break-network") (state.network = Number(target.value)), run(true);
  });
  parts.eps.addEventListener("input", () => {
    parts.budget.textContent = `${eps().toFixed(2)} pixels`;
    run();
  });
  parts.step.addEventListener("input", () => {
    cancelAnimationFrame(playing);
    const t = Number(parts.step.value);
    show(state.frames[Math.min(t, state.frames.length - 1)], state.budget, t);
  });
  parts.play.addEventListener("click", () => run(true));
  parts.clear.addEventListener("click", clear);
  parts.go.addEventListener("click", () => {
    drawing(false);
    parts.play.focus();
    run(true);
  });
  function again() {
    const { ink } = colours();
    root.querySelectorAll(".break-digits canvas").forEach((c, k) => pixels(sized(c), MovingMass.picture(digits[k].pixels), ink));
    if (state.drawing) run();
    else if (state.shown) show(state.shown, state.budget, Number(parts.step.value));
  }
  new MutationObserver(again).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  still.addEventListener("change", () => drawing(state.drawing));

  place.before(root);
  new ResizeObserver(again).observe(parts.image);
  root.querySelector(`[value="${FIRST}"]`).checked = root.querySelector("[name=break-network]").checked = true;
  pick(FIRST);
  networks.forEach((_, k) => k && setTimeout(() => load(k).catch(() => {}), 1500)); // before it is asked for
})();
