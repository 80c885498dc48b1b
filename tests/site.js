// Looks at a built page from inside the browser; tests/test_site.py asks it questions.
// Everything that the page folds away is opened first: folded text is read, too.

const site = {
  async settle() {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    await document.fonts.ready;
    document.querySelectorAll("details").forEach((d) => (d.open = true));
    document.querySelectorAll(".toggle-hidden.admonition > .admonition-title").forEach((t) => t.click());
    document.querySelectorAll("img[hidden]").forEach((i) => (i.hidden = false));
    await Promise.all([...document.images].map((i) => i.decode().catch(() => {})));
    await new Promise((done) => setTimeout(done, 50));
  },

  describe(node) {
    const element = node.nodeType === 1 ? node : node.parentElement;
    const text = (node.textContent || "").trim().slice(0, 60);
    return `<${element.tagName.toLowerCase()} class="${element.className}"> ${text}`;
  },

  texts() {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const parent = node.parentElement;
      if (!node.textContent.trim() || parent.closest("script, style, noscript, mjx-container, svg"))
        continue;
      const box = parent.getBoundingClientRect();
      const shown = { checkOpacity: true, checkVisibilityCSS: true };
      if (parent.checkVisibility(shown) && box.width > 1 && box.height > 1) found.push(node);
    }
    return found;
  },

  // Mathematics: every element typeset, no error in it, no source left in the text.
  mathematics() {
    const wrong = [];
    document.querySelectorAll(".math").forEach((m) => {
      if (!m.querySelector("mjx-container")) wrong.push("not typeset: " + site.describe(m));
    });
    document
      .querySelectorAll("mjx-merror, [data-mml-node=merror], [data-mjx-error], mjx-mtext[style*=red]")
      .forEach((m) => wrong.push("error: " + site.describe(m.closest(".math") || m)));
    for (const node of site.texts()) {
      if (node.parentElement.closest("pre, code")) continue;
      if (/\$[^$\s][^$]*\$|\\[([]|\\begin\{|\\(frac|sum|pi|min|max)\b/.test(node.textContent))
        wrong.push("source: " + site.describe(node));
    }
    return wrong;
  },

  // Whatever reaches beyond the right edge must lie in something that scrolls.
  overflow() {
    const width = document.documentElement.clientWidth;
    const wrong = [];
    if (document.documentElement.scrollWidth > width) wrong.push("the page itself scrolls sideways");
    document.querySelectorAll("main *").forEach((element) => {
      const box = element.getBoundingClientRect();
      if (box.width < 2 || box.right <= width + 1 || !element.checkVisibility()) return;
      for (let parent = element; parent; parent = parent.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(parent).overflowX)) return;
      if (!element.closest("mjx-assistive-mml")) wrong.push(site.describe(element));
    });
    return wrong;
  },

  images() {
    return [...document.images]
      .filter((i) => !i.alt.trim() || !i.complete || i.naturalWidth === 0)
      .map((i) => `${i.src.slice(0, 80)} "${i.alt}"`);
  },

  pen: Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", {
    willReadFrequently: true,
  }),

  colors: {},

  rgba(color) {
    if (!(color in site.colors)) {
      site.pen.clearRect(0, 0, 1, 1);
      site.pen.fillStyle = color;
      site.pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = site.pen.getImageData(0, 0, 1, 1).data;
      site.colors[color] = [r, g, b, a / 255];
    }
    return [...site.colors[color]];
  },

  over(top, below) {
    return [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  },

  background(element) {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const color = site.rgba(getComputedStyle(e).backgroundColor);
      layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => site.over(top, below), [255, 255, 255, 1]);
  },

  luminance(color) {
    const linear = color.slice(0, 3).map((v) => {
      const c = v / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  },

  contrast(element) {
    const below = site.background(element);
    const ink = site.rgba(getComputedStyle(element).color);
    for (let e = element; e; e = e.parentElement) ink[3] *= Number(getComputedStyle(e).opacity);
    const [light, dark] = [site.luminance(site.over(ink, below)), site.luminance(below)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  },

  // WCAG's 4.5 to 1 for what is read, 3 to 1 for the colours of code.
  async faint(theme) {
    document.documentElement.dataset.theme = theme;
    document.getAnimations().forEach((a) => a.finish());
    await new Promise((done) => setTimeout(done, 50));
    const wrong = new Set();
    const check = (element, node) => {
      const ratio = site.contrast(element);
      if (ratio < (element.closest("pre") ? 3 : 4.5)) wrong.add(`${ratio.toFixed(2)} ${site.describe(node)}`);
    };
    site.texts().forEach((node) => check(node.parentElement, node));
    document.querySelectorAll("article mjx-container").forEach((m) => check(m, m));
    document.querySelectorAll("article img").forEach((i) => {
      if (site.rgba(getComputedStyle(i).backgroundColor)[3] < 1) wrong.add("see-through " + i.alt);
    });
    return [...wrong];
  },
};
