
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const filters = byId("filters"), search = byId("search"), count = byId("count"), tip = byId("tip");
  const entries = [...document.querySelectorAll("[data-kind]")];
  const suites = [...document.querySelectorAll(".suite")];
  const kinds = [...filters.querySelectorAll("[name=kind]")];
  const profiles = [...filters.querySelectorAll("[name=profile]")];
  filters.hidden = false;

  const chosen = (boxes) => new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = chosen(kinds), profile = chosen(profiles);
    let shown = 0;
    for (const entry of entries) {
      const { kind: k, profile: p, text } = entry.dataset;
      const visible = kind.has(k) && (!profiles.length || profile.has(p)) && words.every((word) => text.includes(word));
      entry.hidden = !visible;
      shown += visible;
    }
    for (const suite of suites) suite.hidden = !suite.querySelector("[data-kind]:not([hidden])");
    count.textContent = shown === entries.length ? `${shown} shown` : `${shown} of ${entries.length} shown`;
  }
  function everything() {
    search.value = "";
    for (const box of [...kinds, ...profiles]) box.checked = true;
    filter();
  }
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", filter);

  function show(entry, open) {
    if (!entry) return;
    if (entry.hidden) everything();
    if (open && entry.tagName === "DETAILS") entry.open = true;
    (entry.querySelector("summary") || entry).focus({ preventScroll: true });
    entry.scrollIntoView({ block: open ? "start" : "nearest" });
  }
  function step(by) {
    const failing = entries.filter((entry) => entry.tagName === "DETAILS" && !entry.hidden);
    const here = failing.indexOf(document.activeElement.closest?.(".case"));
    show(failing[here < 0 ? (by > 0 ? 0 : failing.length - 1) : Math.min(failing.length - 1, Math.max(0, here + by))], false);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { everything(); search.blur(); return; }
    if (event.target === search) return;
    if (event.key === "/") { event.preventDefault(); search.focus(); filters.scrollIntoView({ block: "nearest" }); }
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "f") {
      const alone = kinds.every((box) => box.checked === (box.value === "failing"));
      for (const box of kinds) box.checked = alone || box.value === "failing";
      filter();
    }
  });
  const follow = () => { const entry = /^#c\d+$/.test(location.hash) && byId(location.hash.slice(1)); if (entry) show(entry, true); };
  window.addEventListener("hashchange", follow);

  const overview = byId("overview"), data = byId("overview-data");
  if (overview) {
    const { cases, stages } = JSON.parse(data.textContent), under = byId("under"), before = under.textContent;
    const { left, width, row } = Object.fromEntries(Object.entries(overview.dataset).map(([k, v]) => [k, Number(v)]));
    const at = (event) => {
      const box = overview.getBoundingClientRect();
      const x = event.clientX - box.left - left, y = event.clientY - box.top - 20;
      const place = Math.floor(x / width * cases.length), stage = Math.floor(y / row);
      return x >= 0 && place < cases.length && stage >= 0 && stage < stages.length ? [byId(`c${cases[place]}`), stages[stage]] : null;
    };
    const name = (entry) => entry.querySelector(".path code")?.textContent ?? entry.closest(".suite").querySelector("h3").firstChild.textContent.trim() + "/" + entry.firstChild.textContent.trim();
    overview.addEventListener("mousemove", (event) => {
      const found = at(event);
      under.textContent = found ? `${name(found[0])} (${found[0].dataset.profile}) · ${found[1]}` : before;
    });
    overview.addEventListener("mouseleave", () => { under.textContent = before; });
    overview.addEventListener("click", (event) => { const found = at(event); if (found) show(found[0], true); });
  }

  const numbers = JSON.parse(byId("numbers").textContent);
  document.addEventListener("mousemove", (event) => {
    const heat = event.target.closest?.(".heat");
    if (!heat) { tip.hidden = true; return; }
    const [top, first, expected, given, difference] = numbers[heat.dataset.map];
    const box = heat.querySelector("image").getBoundingClientRect();
    const r = Math.floor((event.clientY - box.top) / box.height * expected.length);
    const c = Math.floor((event.clientX - box.left) / box.width * expected[0].length);
    if (r < 0 || c < 0 || r >= expected.length || c >= expected[0].length) { tip.hidden = true; return; }
    tip.textContent = `row ${top + r}, column ${first + c}\nexpected   ${expected[r][c]}\ngiven      ${given[r][c]}\ndifference ${difference[r][c]}`;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
  filter();
  follow();
})();
