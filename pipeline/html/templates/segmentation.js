"use strict";
(() => {
  const MAX_ZOOM = 16, ZOOM_STEP = 1.5;
  const OUTLINES = 960;  // pixels of the longer side of the canvas with the outlines
  const NO_DATA = 0x909090;  // color in masks, as in pipeline/report/gallery.py
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const cards = byId("cards");
  const items = [...cards.children];  // in the order of facts.pictures
  const [search, classes, reasons, order] = ["search", "class", "reason", "order"].map(byId);
  const viewer = byId("viewer"), stage = byId("stage"), legend = byId("legend");
  const percent = (share) => (share > 0 && share < 0.001 ? "<0.1%" : (100 * share).toFixed(1) + "%");
  const aboutClass = (id) => facts.classes[id] ?? { name: `class ${id}`, color: [96, 96, 96] };
  const keyOf = ([red, green, blue]) => (red << 16) | (green << 8) | blue;
  let shown = [];  // numbers of pictures, filtered and in order
  let current = 0;  // index in `shown` of the card in the tab order, and of the open picture

  // List: filters, order, count.

  const shareOf = (n, id) => facts.pictures[n].classes.find((each) => each[0] === id)?.[1] ?? 0;
  const byUri = (a, b) => (facts.pictures[a].uri < facts.pictures[b].uri ? -1 : 1);
  const byConfidence = (a, b) => facts.pictures[a].confidence - facts.pictures[b].confidence;
  const orders = {
    least: (a, b) => byConfidence(a, b) || byUri(a, b),
    most: (a, b) => byConfidence(b, a) || byUri(a, b),
    share: (a, b) => shareOf(b, Number(classes.value)) - shareOf(a, Number(classes.value)) || byUri(a, b),
    key: byUri,
  };

  function update() {
    const byShare = order.querySelector("[value=share]");
    byShare.disabled = classes.value === "";
    if (byShare.disabled && order.value === "share") order.value = "least";
    const words = search.value.toLowerCase();
    shown = facts.pictures.map((_, n) => n).filter((n) => {
      const picture = facts.pictures[n];
      return picture.uri.toLowerCase().includes(words)
        && (classes.value === "" || shareOf(n, Number(classes.value)) > 0)
        && (reasons.value === "" || picture.reason === reasons.value);
    }).sort(orders[order.value]);
    items.forEach((item) => { item.hidden = true; });
    for (const n of shown) {
      items[n].hidden = false;
      const id = classes.value === "" ? facts.pictures[n].classes[0]?.[0] : Number(classes.value);
      items[n].querySelector(".share").textContent =
        id === undefined ? "" : ` · ${percent(shareOf(n, id))} ${aboutClass(id).name}`;
      cards.append(items[n]);
    }
    byId("count").textContent = shown.length === 0 ? "No matching pictures."
      : `${shown.length} of ${items.length} picture${items.length === 1 ? "" : "s"}`;
    setCurrent(0);
  }

  function setCurrent(place) {
    current = Math.max(0, Math.min(shown.length - 1, place));
    shown.forEach((n, k) => { button(n).tabIndex = k === current ? 0 : -1; });
  }

  const button = (n) => items[n].querySelector("button");

  function focusCurrent() {
    if (shown.length) button(shown[current]).focus();
  }

  function columns() {
    const top = items[shown[0]].offsetTop;
    const below = shown.findIndex((n) => items[n].offsetTop > top);
    return below < 0 ? shown.length : below;
  }

  // Opacity slider, for the list and the open picture.

  const sliders = document.querySelectorAll("input[type=range]");
  function setOpacity(value) {
    document.documentElement.style.setProperty("--opacity", value / 100);
    sliders.forEach((slider) => { slider.value = value; });
  }
  sliders.forEach((slider) => slider.addEventListener("input", () => setOpacity(slider.value)));

  // Open picture.

  let pinned = null;  // color of the only class that is shown
  let mask = null;  // of the open picture: width, height, and the color of each pixel

  function show(place) {
    setCurrent(place);
    const n = shown[current], picture = facts.pictures[n];
    byId("viewer-name").textContent = picture.uri;
    byId("position").textContent = `${current + 1} of ${shown.length}`;
    byId("facts-line").textContent = `${picture.size} pixels · mean confidence ${picture.confidence.toFixed(3)}, from 0 to 1 · `
      + `${percent(picture.lowConfidence)} of the pixels below 0.5 · chosen: ${picture.reason}`;
    byId("picture-notes").textContent = picture.notes.join(" · ");
    const [image, colored] = [".image", ".mask"].map((kind) => items[n].querySelector(`.stack ${kind}`)?.cloneNode());
    if (image) image.alt = "image";
    if (colored) colored.alt = "mask";
    stage.replaceChildren(pane(image, canvas("outlines")), pane(colored, canvas("alone")), pointed);
    stage.classList.toggle("gone", !image);
    stage.classList.toggle("nothing", !image && !colored);
    legend.replaceChildren(...picture.classes.map(([id, share, confidence]) => legendItem(id, share, confidence)));
    setView(1, 0, 0);
    pointed.hidden = true;
    pinned = mask = null;
    only(null);
    colored?.decode().then(() => {
      if (!colored.isConnected) return;  // another picture is open
      mask = readMask(colored);
      only(pinned);
    });
  }

  function pane(...layers) {
    const made = document.createElement("div");
    made.className = "pane";
    made.append(...layers.filter(Boolean));
    return made;
  }

  function canvas(kind) {
    const made = document.createElement("canvas");
    made.className = kind;
    return made;
  }

  function readMask(image) {
    const { naturalWidth: width, naturalHeight: height } = image;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, width, height).data;
    return { width, height, keys: Int32Array.from({ length: width * height }, (_, at) => keyOf(data.subarray(4 * at))) };
  }

  function legendItem(id, share, confidence) {
    const { name, color } = aboutClass(id);
    const swatch = document.createElement("span"), label = document.createElement("span"), number = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${color})`;
    label.textContent = name;
    number.className = "number soft";
    number.textContent = percent(share);
    const entry = document.createElement("button");
    entry.type = "button";
    entry.title = `confidence ${confidence.toFixed(3)}; show only this class`;
    entry.dataset.key = keyOf(color);
    entry.setAttribute("aria-pressed", "false");
    entry.append(swatch, label, number);
    entry.addEventListener("mouseenter", () => only(color));
    entry.addEventListener("mouseleave", () => only(pinned));
    entry.addEventListener("click", () => {
      const was = entry.getAttribute("aria-pressed") === "true";
      legend.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", "false"));
      entry.setAttribute("aria-pressed", String(!was));
      pinned = was ? null : color;
      only(pinned);
    });
    const item = document.createElement("li");
    item.append(entry);
    return item;
  }

  function only(color) {  // null: all classes
    stage.classList.toggle("only", color !== null && mask !== null);
    if (mask === null) return;
    const wanted = color === null ? null : keyOf(color);
    if (color !== null) {
      paint("alone", mask.width, mask.height, (x, y) => (mask.keys[y * mask.width + x] === wanted ? opaque(color) : 0));
    }
    // Finer than the mask, so that lines stay thin.
    const scale = Math.max(1, Math.round(OUTLINES / Math.max(mask.width, mask.height)));
    const width = scale * mask.width, height = scale * mask.height;
    const region = (x, y) => {  // -1: nothing to outline
      if (x < 0 || y < 0 || x >= width || y >= height) return -1;
      const key = mask.keys[Math.floor(y / scale) * mask.width + Math.floor(x / scale)];
      return wanted === null || key === wanted ? key : -1;
    };
    // A region's last pixels are white and the next region's first ones black, which is visible on any image.
    paint("outlines", width, height, (x, y) => {
      const here = region(x, y);
      if (here !== region(x + 1, y) || here !== region(x, y + 1)) return opaque([255, 255, 255]);
      return here !== region(x - 1, y) || here !== region(x, y - 1) ? opaque([0, 0, 0]) : 0;
    });
  }

  const opaque = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

  function paint(kind, width, height, colorAt) {
    const target = stage.querySelector(`.${kind}`), pixels = new ImageData(width, height);
    const words = new Uint32Array(pixels.data.buffer);
    for (let y = 0, at = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, at += 1) words[at] = colorAt(x, y);
    }
    target.width = width;
    target.height = height;
    target.getContext("2d", { willReadFrequently: true }).putImageData(pixels, 0, 0);
  }

  // Class under the pointer.

  const pointed = document.createElement("span");
  pointed.id = "pointed";

  function point(event) {
    const key = maskAt(event), names = facts.pictures[shown[current]].classes.map(([id]) => aboutClass(id))
      .filter(({ color }) => keyOf(color) === key).map(({ name }) => name);
    pointed.hidden = key === null;
    pointed.textContent = names.join(" or ") || (key === NO_DATA ? "no data" : "a class that is too small for a color here");
    const box = stage.getBoundingClientRect();
    const place = (at, length, room) => `${Math.max(0, Math.min(at + 14, room - length))}px`;
    pointed.style.left = place(event.clientX - box.x, pointed.offsetWidth, box.width);
    pointed.style.top = place(event.clientY - box.y, pointed.offsetHeight, box.height);
    legend.querySelectorAll("button").forEach((entry) => entry.classList.toggle("pointed", Number(entry.dataset.key) === key));
  }

  function maskAt(event) {  // color of the mask's pixel, or null
    const over = paneAt(event);
    const left = event.type === "pointerleave" && event.pointerType === "mouse";  // a finger that is lifted leaves the name
    if (!over || mask === null || left) return null;
    const box = over.getBoundingClientRect(), fit = Math.min(box.width / mask.width, box.height / mask.height);
    const x = Math.floor(((event.clientX - box.x - view.x) / view.zoom - box.width / 2) / fit + mask.width / 2);
    const y = Math.floor(((event.clientY - box.y - view.y) / view.zoom - box.height / 2) / fit + mask.height / 2);
    return x < 0 || y < 0 || x >= mask.width || y >= mask.height ? null : mask.keys[y * mask.width + x];
  }

  function paneAt({ clientX: x, clientY: y }) {  // by place, because the stage captures the pointer
    return [...stage.querySelectorAll(".pane")].find((each) => {
      const box = each.getBoundingClientRect();
      return x >= box.left && x < box.right && y >= box.top && y < box.bottom;
    });
  }

  ["pointermove", "pointerdown", "pointerleave"].forEach((type) => stage.addEventListener(type, point));

  // Zoom.

  let view = { zoom: 1, x: 0, y: 0 };  // in pixels of the window, from a pane's upper left corner

  function setView(zoom, x, y) {
    const { width, height } = stage.querySelector(".pane").getBoundingClientRect();
    const inside = (at, length) => Math.min(0, Math.max(at, length * (1 - zoom)));
    view = { zoom, x: inside(x, width), y: inside(y, height) };
    stage.style.setProperty("--zoom", zoom);
    stage.style.setProperty("--x", `${view.x}px`);
    stage.style.setProperty("--y", `${view.y}px`);
    stage.classList.toggle("zoomed", zoom > 1);
    byId("zoom").textContent = `${Math.round(100 * zoom)}%`;
  }

  function zoomBy(factor, event) {  // around the pointer, or else the middle
    const box = ((event && paneAt(event)) ?? stage.querySelector(".pane")).getBoundingClientRect();
    const zoom = Math.max(1, Math.min(MAX_ZOOM, view.zoom * factor)), ratio = zoom / view.zoom;
    const [x, y] = event ? [event.clientX - box.x, event.clientY - box.y] : [box.width / 2, box.height / 2];
    setView(zoom, x - (x - view.x) * ratio, y - (y - view.y) * ratio);
  }

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 400), event);
  }, { passive: false });
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) setView(view.zoom, view.x + event.movementX, view.y + event.movementY);
  });
  byId("smaller").addEventListener("click", () => zoomBy(1 / ZOOM_STEP));
  byId("larger").addEventListener("click", () => zoomBy(ZOOM_STEP));
  byId("outlined").addEventListener("change", (event) => stage.classList.toggle("outlined", event.target.checked));
  stage.classList.toggle("outlined", byId("outlined").checked);

  function step(by) {
    show((current + by + shown.length) % shown.length);
  }

  cards.addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (!item) return;
    show(shown.indexOf(items.indexOf(item)));
    viewer.showModal();
    byId("close").focus();
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", focusCurrent);
  byId("close").addEventListener("click", () => viewer.close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("apart").addEventListener("change", (event) => {
    stage.classList.toggle("apart", event.target.checked);
    setView(1, 0, 0);
  });

  // Keyboard.

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target, key = event.key;
    const typing = target.matches("input, select");
    if (viewer.open) {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[key], factor = { "+": ZOOM_STEP, "=": ZOOM_STEP, "-": 1 / ZOOM_STEP, 0: 0 }[key];
      if (by && !typing) step(by);
      if (factor !== undefined && !typing) zoomBy(factor);
      return;
    }
    if (key === "/" && !typing) {
      search.focus();
      search.select();
    } else if (target === search && key === "Escape") {
      search.value = "";
      update();
      focusCurrent();
    } else if (target === search && (key === "Enter" || key === "ArrowDown")) {
      focusCurrent();
    } else if (cards.contains(target)) {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -shown.length, End: shown.length }[key];
      if (by === undefined) return;
      if (shown[current + by] !== undefined || key === "Home" || key === "End") setCurrent(current + by);
      focusCurrent();
    } else {
      return;
    }
    event.preventDefault();
  });

  search.addEventListener("input", update);
  [classes, reasons, order].forEach((choice) => choice.addEventListener("change", update));
  setOpacity(50);
  update();
})();
