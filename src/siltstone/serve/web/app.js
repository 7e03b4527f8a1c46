// Which page is shown, and when it is drawn anew.

import { segments } from "/static/api.js";
import { Overview } from "/static/overview.js";
import { Query } from "/static/query.js";
import { drawMaps } from "/static/segments.js";

const REFRESH_MS = 2000;
const PAGES = ["overview", "segments", "query"];

const element = (name) => document.getElementById(name);
const range = element("range");
const state = element("state");
const overview = new Overview(element("tiles"), element("charts"));
const query = new Query(element("query"), range);

const page = () => (PAGES.includes(location.hash.slice(1)) ? location.hash.slice(1) : "overview");

function show() {
  for (const name of PAGES) element(name).hidden = name !== page();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${page()}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

async function refresh() {
  try {
    if (page() === "overview") await overview.refresh(Number(range.value));
    else if (page() === "segments") drawMaps(element("maps"), await segments());
    state.textContent = new Date().toLocaleTimeString();
    state.classList.remove("bad");
  } catch (error) {
    state.textContent = error.message;
    state.classList.add("bad");
  }
}

async function turn() {
  if (!document.hidden) await refresh();
  setTimeout(turn, REFRESH_MS);
}

async function changed() {
  show();
  await refresh();
  if (page() === "query") {
    try {
      await query.load();
    } catch (error) {
      state.textContent = error.message;
    }
  }
}

window.addEventListener("hashchange", changed);
range.addEventListener("change", () => (page() === "query" ? query.run() : refresh()));
changed().then(() => setTimeout(turn, REFRESH_MS));
