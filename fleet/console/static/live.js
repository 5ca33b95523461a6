// Draws the page anew when the fleet says that something changed. Without it, reload.
const status = document.getElementById("live");
const main = document.getElementById("main");
const source = new EventSource("/api/v1/events");
let due = false; // something changed that is not shown yet
let busy = false;

// never under somebody's hands: text being selected; nor for nobody
const held = () => document.hidden || !getSelection().isCollapsed;

async function refresh() {
  due = true;
  if (busy || held()) return;
  busy = true;
  due = false;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.assign(answer.url);
    if (answer.ok) show(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    due = true; // the fleet is away; the stream says when it is back
  } finally {
    setTimeout(() => { busy = false; if (due && source.readyState === EventSource.OPEN) refresh(); }, 700);
  }
}

// What the reader opened stays open, and what he was on keeps the focus.
function show(fresh) {
  const name = (article) => article.getAttribute("aria-labelledby");
  const open = new Set([...main.querySelectorAll("article:has(details[open])")].map(name));
  for (const article of fresh.querySelectorAll("#main article")) {
    const details = article.querySelector("details");
    if (details) details.open = open.has(name(article));
  }
  const stops = () => [...main.querySelectorAll("a, summary")];
  const focused = stops().indexOf(document.activeElement);
  main.replaceChildren(...fresh.getElementById("main").childNodes);
  if (focused >= 0) stops()[focused]?.focus({ preventScroll: true });
}

// A stream that was refused stays closed: a fleet that began anew has forgotten who signed in.
async function again() {
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.assign(answer.url);
    if (answer.ok) return location.reload();
  } catch { /* away still */ }
  setTimeout(again, 3000);
}

source.addEventListener("open", () => { status.textContent = "live"; });
source.addEventListener("error", () => {
  status.textContent = "reconnecting";
  if (source.readyState === EventSource.CLOSED) again();
});
source.addEventListener("change", refresh);
for (const moment of ["visibilitychange", "selectionchange"]) {
  document.addEventListener(moment, () => { if (due) refresh(); });
}
