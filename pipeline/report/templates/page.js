"use strict";
// Tables: a click on a heading sorts, the next one turns the order around.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((heading) => {
    const column = heading.cellIndex;
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.children[column].textContent.trim();
      const isNumeric = heading.classList.contains("num");
      const compare = (a, b) => isNumeric ? parseFloat(text(a)) - parseFloat(text(b)) : text(a).localeCompare(text(b));
      const rows = [...table.tBodies[0].rows].sort((a, b) => down ? compare(b, a) : compare(a, b));
      table.tBodies[0].append(...rows);
    });
  });
}

// Clips: a cell of the confusion matrix shows its clips alone.
const filter = document.querySelector(".filter");
const cards = [...document.querySelectorAll(".clip")];
let chosen = null; // the cell whose clips are shown
function show(isShown, words) {
  let count = 0;
  for (const card of cards) {
    card.hidden = !isShown(card);
    count += card.hidden ? 0 : 1;
  }
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector(".clip:not([hidden])");
  filter.hidden = !words;
  filter.firstElementChild.textContent = words ? `${count} ${count === 1 ? "clip" : "clips"}: ${words}` : "";
}
const showAll = () => show(() => true, "");
function goBack() {
  showAll();
  chosen.focus(); // what had the focus is hidden, or is somewhere else now
}
for (const link of document.querySelectorAll("a[data-cell]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    chosen = link;
    show((card) => card.dataset.cells.split(" ").includes(link.dataset.cell), link.dataset.words);
    document.getElementById("clips").scrollIntoView();
    cards.find((card) => !card.hidden).focus({ preventScroll: true });
  });
}
if (filter) {
  filter.lastElementChild.addEventListener("click", goBack);
  addEventListener("keydown", (event) => { if (event.key === "Escape" && !filter.hidden) goBack(); });
  addEventListener("hashchange", () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.hidden) { showAll(); target.scrollIntoView(); }
  });
}

// Videos play while they are pointed at or have the keyboard's focus; a click or the space bar stops and starts them.
for (const video of document.querySelectorAll("video")) {
  video.controls = false;
  video.tabIndex = 0;
  const play = () => { video.play().catch(() => {}); };
  const toggle = () => { if (video.paused) play(); else video.pause(); };
  video.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") play(); });
  video.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") video.pause(); });
  video.addEventListener("focus", () => { if (video.matches(":focus-visible")) play(); });
  video.addEventListener("blur", () => video.pause());
  video.addEventListener("click", toggle);
  video.addEventListener("keydown", (event) => { if (event.key === " ") { event.preventDefault(); toggle(); } });
}
