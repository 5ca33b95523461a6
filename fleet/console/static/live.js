// Draws the page anew when the fleet says that something changed. Without it, reload.
const status = document.getElementById("live");
const source = new EventSource("/api/v1/events");
let waiting = false;

async function refresh() {
  const main = document.getElementById("main");
  // never under somebody's hands: text being selected, a table being read by keyboard
  if (waiting || document.hidden || String(getSelection()) || main.contains(document.activeElement)) return;
  waiting = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.assign(answer.url);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const open = [...main.querySelectorAll("article")].filter((a) => a.querySelector("details[open]"));
    const ids = new Set(open.map((a) => a.getAttribute("aria-labelledby")));
    for (const article of fresh.querySelectorAll("#main article")) {
      if (ids.has(article.getAttribute("aria-labelledby"))) article.querySelector("details").open = true;
    }
    main.replaceChildren(...fresh.getElementById("main").childNodes);
  } finally {
    setTimeout(() => { waiting = false; }, 700);
  }
}

source.addEventListener("open", () => { status.textContent = "live"; });
source.addEventListener("error", () => { status.textContent = "reconnecting"; });
source.addEventListener("change", refresh);
