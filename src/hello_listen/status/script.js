"use strict";

const EVERY = 2000;
const state = document.getElementById("state");
let answered = new Date();

function say(name, text) {
  if (state.textContent !== text) state.textContent = text;
  state.dataset.state = name;
}

// Replace only changed nodes, so that focus, selection and scrolling stay.
function show(page) {
  const known = new Set(Array.from(document.getElementById("latest").rows, (row) => row.textContent));
  for (const row of page.getElementById("latest").rows) {
    row.classList.toggle("new", !known.has(row.textContent));
  }
  for (const now of document.querySelectorAll("[data-live]")) {
    const next = page.getElementById(now.id);
    if (next.innerHTML !== now.innerHTML) now.replaceChildren(...next.childNodes);
  }
}

async function update() {
  try {
    const answer = await fetch("./", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.statusText);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    answered = new Date();
    say("live", "Live");
  } catch {
    say("gone", `No answer since ${answered.toISOString().slice(11, 19)}`);
  }
  setTimeout(update, EVERY);
}

say("live", "Live");
setTimeout(update, EVERY);
