"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const cards = byId("cards");
  const items = [...cards.children];  // in the order of facts.pictures
  const [search, classes, reasons, order] = ["search", "class", "reason", "order"].map(byId);
  const viewer = byId("viewer"), stage = byId("stage"), legend = byId("legend");
  const percent = (share) => (share > 0 && share < 0.001 ? "<0.1%" : (100 * share).toFixed(1) + "%");
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
      items[n].querySelector(".share").textContent =
        classes.value === "" ? "" : ` · ${percent(shareOf(n, Number(classes.value)))} ${facts.classes[classes.value].name}`;
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

  function show(place) {
    setCurrent(place);
    const n = shown[current], picture = facts.pictures[n];
    byId("viewer-name").textContent = picture.uri;
    byId("position").textContent = `${current + 1} of ${shown.length}`;
    byId("facts-line").textContent = `${picture.size} pixels · confidence ${picture.confidence.toFixed(3)} · `
      + `${percent(picture.lowConfidence)} of the pixels below 0.5 · chosen: ${picture.reason}`;
    byId("picture-notes").textContent = picture.notes.join(" · ");
    const copies = [...items[n].querySelectorAll(".stack img")].map((image) => image.cloneNode());
    copies.forEach((image) => { image.alt = image.className === "mask" ? "mask" : "image"; });
    stage.replaceChildren(...copies, document.createElement("canvas"));
    stage.classList.toggle("gone", !copies.some((image) => image.className === "image"));
    stage.classList.toggle("nothing", copies.length === 0);
    legend.replaceChildren(...picture.classes.map(([id, share, confidence]) => legendItem(id, share, confidence)));
    pinned = null;
    only(null);
  }

  function legendItem(id, share, confidence) {
    const { name, color } = facts.classes[id] ?? { name: `class ${id}`, color: [96, 96, 96] };
    const swatch = document.createElement("span"), label = document.createElement("span"), number = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${color})`;
    label.textContent = name;
    number.className = "number soft";
    number.textContent = percent(share);
    const entry = document.createElement("button");
    entry.type = "button";
    entry.title = `confidence ${confidence.toFixed(3)}; show only this class`;
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

  function only(color) {
    const mask = stage.querySelector(".mask");
    stage.classList.toggle("only", color !== null && mask !== null);
    if (color === null || mask === null) return;
    const canvas = stage.querySelector("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
    canvas.width = mask.naturalWidth;
    canvas.height = mask.naturalHeight;
    context.drawImage(mask, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height), data = pixels.data;
    for (let at = 0; at < data.length; at += 4) {
      if (data[at] !== color[0] || data[at + 1] !== color[1] || data[at + 2] !== color[2]) data[at + 3] = 0;
    }
    context.putImageData(pixels, 0, 0);
  }

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
  byId("apart").addEventListener("change", (event) => stage.classList.toggle("apart", event.target.checked));

  // Keyboard.

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target, key = event.key;
    const typing = target.matches("input, select");
    if (viewer.open) {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (by && !typing) step(by);
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
