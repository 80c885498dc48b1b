// What the landing page computes: a small network, forward and backward, and mirror ascent on the
// plans of the Wasserstein ball. Pure functions on Float64Array, the same computation as
// wotlab.models "wong-mnist", wotlab/attacks/_mirror_ascent.py and wotlab/plans/_potential.py for
// one image of one channel; tests/test_landing.py holds them together.

globalThis.MovingMass = (() => {
  "use strict";
  const SIDE = 28, PIXELS = SIDE * SIDE, CLASSES = 10;
  const WINDOW = 2; // a plan moves mass at most so many rows and columns: a window of 5x5
  const LEAST = 2 ** -1022, EPSILON = 2 ** -52, SINGLE = 2 ** -23;
  const DEEPEST = -0.97 * Math.log(Number.MAX_VALUE);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const sum = (values) => values.reduce((total, v) => total + v, 0);
  const numbers = (count) => new Float64Array(count);

  // --- the network: conv 4x4 stride 2 pad 1, twice, two linear layers; ReLU between them

  const LAYERS = [
    { kind: "conv", inputs: 1, outputs: 16, side: 28 },
    { kind: "conv", inputs: 16, outputs: 32, side: 14 },
    { kind: "linear", inputs: 1568, outputs: 100 },
    { kind: "linear", inputs: 100, outputs: CLASSES },
  ];

  function half(bits) {
    const exponent = (bits >> 10) & 31, digits = bits & 1023;
    const size = exponent ? 2 ** (exponent - 25) * (1024 + digits) : 2 ** -24 * digits;
    return bits & 0x8000 ? -size : size;
  }

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // Weights as they are stored: half precision, little endian, in base64, layer by layer.
  function network(text) {
    const raw = bytes(text);
    const all = Float64Array.from({ length: raw.length / 2 }, (_, k) => half(raw[2 * k] | (raw[2 * k + 1] << 8)));
    let at = 0;
    return LAYERS.map((layer) => {
      const many = layer.inputs * layer.outputs * (layer.kind === "conv" ? 16 : 1);
      const weight = all.subarray(at, at + many), bias = all.subarray(at + many, (at += many + layer.outputs));
      return { ...layer, weight, bias, places: taken(layer), size: layer.inputs * (layer.side ?? 1) ** 2 };
    });
  }

  // Where each output pixel of a convolution finds the input that each weight of a filter takes:
  // [weights of a filter][output pixels], and -1 beyond the edge.
  function taken({ kind, inputs, side }) {
    if (kind === "linear") return Int32Array.from({ length: inputs }, (_, i) => i);
    const half = side / 2, places = new Int32Array(4 * inputs * side * side).fill(-1);
    for (let i = 0, k = 0; i < inputs; i++)
      for (let dy = -1; dy < 3; dy++)
        for (let dx = -1; dx < 3; dx++)
          for (let y = 0; y < half; y++)
            for (let x = 0; x < half; x++, k++) {
              const v = 2 * y + dy, u = 2 * x + dx;
              if (v >= 0 && v < side && u >= 0 && u < side) places[k] = (i * side + v) * side + u;
            }
    return places;
  }

  // Both kinds of layer are a matrix: outputs x weights of a filter, times those x output pixels.
  function applied({ outputs, weight, bias, places }, x) {
    const filter = weight.length / outputs, each = places.length / filter;
    const columns = numbers(places.length), y = numbers(outputs * each);
    for (let k = 0; k < places.length; k++) columns[k] = places[k] < 0 ? 0 : x[places[k]];
    for (let o = 0; o < outputs; o++) {
      y.fill(bias[o], o * each, (o + 1) * each);
      if (each === 1) for (let f = 0, row = o * filter; f < filter; f++) y[o] += weight[row + f] * columns[f];
      else for (let f = 0; f < filter; f++) {
        const w = weight[o * filter + f], to = o * each, from = f * each;
        for (let p = 0; p < each; p++) y[to + p] += w * columns[from + p];
      }
    }
    return y;
  }

  // The gradient of an input, from that of the output.
  function backed({ outputs, weight, places, size }, dy) {
    const filter = weight.length / outputs, each = places.length / filter;
    const columns = numbers(places.length), dx = numbers(size);
    for (let o = 0; o < outputs; o++)
      if (each === 1) for (let f = 0, row = o * filter; f < filter; f++) columns[f] += weight[row + f] * dy[o];
      else for (let f = 0; f < filter; f++) {
        const w = weight[o * filter + f], from = o * each, to = f * each;
        for (let p = 0; p < each; p++) columns[to + p] += w * dy[from + p];
      }
    for (let k = 0; k < places.length; k++) if (places[k] >= 0) dx[places[k]] += columns[k];
    return dx;
  }

  // Logits last; before them what each ReLU gave.
  function forward(layers, image) {
    const values = [];
    layers.forEach((layer, k) => {
      const y = applied(layer, k ? values[k - 1] : image);
      values.push(k < layers.length - 1 ? y.map((v) => Math.max(v, 0)) : y);
    });
    return values;
  }

  function backward(layers, values, slope) {
    for (let k = layers.length - 1; k >= 0; k--) {
      slope = backed(layers[k], slope);
      if (k) slope = slope.map((v, i) => (values[k - 1][i] > 0 ? v : 0));
    }
    return slope;
  }

  function softmax(logits) {
    const most = Math.max(...logits), e = logits.map((v) => Math.exp(v - most)), total = sum(e);
    return e.map((v) => v / total);
  }

  const read = (layers, image) => softmax(forward(layers, image).at(-1));
  const largest = (values) => values.indexOf(Math.max(...values));

  // log((1 - p_y) / p_y), its gradient, the probabilities, and whether the network errs.
  function objective(layers, image, label) {
    const values = forward(layers, image), logits = values.at(-1);
    const others = logits.map((v, k) => (k === label ? -Infinity : v)), most = Math.max(...others);
    const loss = most + Math.log(sum(others.map((v) => Math.exp(v - most)))) - logits[label];
    const slope = softmax(others).map((p, k) => (k === label ? -1 : p));
    const gradient = backward(layers, values, slope);
    return { loss, gradient, probabilities: softmax(logits), broken: largest(logits) !== label };
  }

  // --- the plans q_i(i + d) ~ exp(G - phi - psi C): sums over a window around each pixel

  const STEPS = [], COSTS = numbers((WINDOW + 1) ** 2);
  for (let dy = -WINDOW; dy <= WINDOW; dy++)
    for (let dx = -WINDOW; dx <= WINDOW; dx++) {
      const alike = Math.abs(dy) * (WINDOW + 1) + Math.abs(dx); // steps of one length share a weight
      STEPS.push({ dy, dx, alike });
      COSTS[alike] = Math.hypot(dy, dx);
    }

  // sum_d weight(|d|) image(i + d)
  function around(image, weight) {
    const wide = SIDE + 2 * WINDOW, padded = numbers(wide * wide), total = numbers(PIXELS);
    for (let y = 0; y < SIDE; y++)
      padded.set(image.subarray(y * SIDE, (y + 1) * SIDE), (y + WINDOW) * wide + WINDOW);
    for (const { dy, dx, alike } of STEPS) {
      const w = weight[alike];
      if (w === 0) continue;
      for (let y = 0; y < SIDE; y++) {
        const from = (y + WINDOW + dy) * wide + WINDOW + dx, to = y * SIDE;
        for (let x = 0; x < SIDE; x++) total[to + x] += w * padded[from + x];
      }
    }
    return total;
  }

  function exponentials(G, phi, psi) {
    const potential = G.map((g, i) => g - phi[i]), most = Math.max(...potential);
    const weight = potential.map((p) => Math.exp(Math.max(p - most, DEEPEST)));
    return { weight, near: COSTS.map((c) => Math.exp(Math.max(-psi * c, DEEPEST))) };
  }

  // Better multipliers: a Newton step on log cost(psi) = log eps, and full pixels priced.
  function sweep(x, G, phi, psi, eps) {
    const { weight, near } = exponentials(G, phi, psi), mass = Math.max(sum(x), LEAST);
    const total = around(weight, near);
    const first = around(weight, near.map((n, k) => n * COSTS[k]));
    const second = around(weight, near.map((n, k) => n * COSTS[k] ** 2));
    let cost = 0, slope = 0;
    for (let i = 0; i < PIXELS; i++) {
      const paid = first[i] / total[i];
      cost += (paid * x[i]) / mass;
      slope += ((second[i] / total[i] - paid * paid) * x[i]) / mass;
    }
    const newton = psi + (Math.log(Math.max(cost / eps, 1e-6)) * cost) / Math.max(slope, 1e-30);
    const inflow = around(x.map((v, i) => v / total[i]), near);
    return {
      phi: phi.map((p, i) => Math.max(p + Math.log(Math.max(weight[i] * inflow[i], 1e-6)), 0)),
      psi: clamp(cost > 1e-6 * eps ? newton : 0, psi / 1.5, 1.5 * psi + 0.5),
    };
  }

  // The plan's image and cost, repaired: mass that overfills a pixel goes back, then the blend with
  // the plan that moves nothing. `moves` is the plan: share_i near(d) accepted_(i + d) keep.
  function feasible(x, G, phi, psi, eps) {
    const { weight, near } = exponentials(G, phi, psi), mass = Math.max(sum(x), LEAST);
    const away = near.map((n, k) => (k ? n : 0)), dear = away.map((n, k) => n * COSTS[k]);
    const total = around(weight, near), share = x.map((v, i) => v / total[i]), inflow = around(share, away);
    let accepted = weight, paid = around(weight, near.map((n, k) => n * COSTS[k]));
    let arriving = weight.map((w, i) => w * inflow[i]), stays = weight.map((w, i) => w * share[i]);
    let z = arriving.map((a, i) => a + stays[i]);
    const rounding = 1 + clamp(1e-4 * eps, 8 * EPSILON, 8 * SINGLE);
    for (let turn = 0; turn < 5 && z.some((v) => v > rounding); turn++) {
      if (turn === 4) stays = x;
      accepted = accepted.map((a, i) =>
        turn === 4 || z[i] > rounding ? a * clamp((1 - stays[i]) / Math.max(arriving[i], LEAST), 0, 1) : a
      );
      const left = around(accepted, away);
      paid = around(accepted, dear);
      arriving = accepted.map((a, i) => a * inflow[i]);
      stays = x.map((v, i) => v - share[i] * left[i]);
      z = arriving.map((a, i) => a + stays[i]);
    }
    const cost = sum(share.map((s, i) => s * paid[i])) / mass;
    const keep = Math.min(eps / Math.max(cost, LEAST), 1);
    const image = x.map((v, i) => clamp(v + keep * (z[i] - v), 0, 1));
    return { image, cost: cost * keep, moves: { share, away, accepted, keep, mass } };
  }

  // The moves of a plan as shares of the image's mass: [{ from: [y, x], to: [y, x], mass }].
  function listed({ share, away, accepted, keep, mass }, least = 0) {
    const found = [];
    for (let i = 0; i < PIXELS; i++)
      for (const { dy, dx, alike } of STEPS) {
        const y = Math.floor(i / SIDE), x = i % SIDE, v = y + dy, u = x + dx;
        if (v < 0 || v >= SIDE || u < 0 || u >= SIDE) continue;
        const moved = (keep * share[i] * away[alike] * accepted[v * SIDE + u]) / mass;
        if (moved > least) found.push({ from: [y, x], to: [v, u], mass: moved, cost: COSTS[alike] });
      }
    return found;
  }

  // --- mirror ascent: yields the best image after each number of gradients, from 0 on

  function* climb(layers, x, label, eps, { steps = 40, stepSize = 1, momentum = 0, earlyStop = false } = {}) {
    let z = { image: x, cost: 0, moves: null }, G = numbers(PIXELS), velocity = numbers(PIXELS);
    let now = { phi: numbers(PIXELS), psi: 1 }, last = now, best = null;
    for (let t = 0; ; t++) {
      const { loss, gradient, probabilities, broken } = objective(layers, z.image, label);
      if (!best || (broken && !best.broken) || (broken === best.broken && loss > best.loss))
        best = { ...z, loss, probabilities, broken, reads: largest(probabilities) };
      yield best;
      if (t === steps || (earlyStop && broken)) return;
      const most = Math.max(gradient.reduce((m, g) => Math.max(m, Math.abs(g)), 0), LEAST);
      velocity = velocity.map((v, i) => momentum * v + gradient[i] / most);
      G = G.map((g, i) => g + stepSize * velocity[i]);
      // the potential grows from step to step, the multipliers in proportion: go on as they went
      const phi = now.phi.map((p, i) => Math.max(2 * p - last.phi[i], 0));
      const psi = Math.max(2 * now.psi - last.psi, 0);
      last = now;
      now = sweep(x, G, phi, psi, Math.max(eps, 1e-12));
      z = feasible(x, G, now.phi, now.psi, eps);
    }
  }

  const attack = (layers, x, label, eps, options) => [...climb(layers, x, label, eps, options)].at(-1);

  // A picture of 8 bits, as the networks were trained on: float32's k / 255.
  const picture = (text) => Float64Array.from(bytes(text), (k) => Math.fround(k / 255));

  return { SIDE, PIXELS, network, picture, read, largest, objective, climb, attack, listed, networks: [], digits: [], weights: {} };
})();
