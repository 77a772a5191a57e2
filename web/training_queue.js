// Shows on training nodes that they wait in ComfyUI's queue: what is before them, and how long it takes.

import { api } from "../../scripts/api.js";

const MOST_OFTEN = 2000; // milliseconds between questions to the server

let shown = []; // what the server has last said, a message per node
let asked = 0; // when
let question = 0; // its number
let timer = null;

// Asks the server which trainings wait, and shows it on their panels. onlyTimes: nothing may have changed but the times,
// which matters only if something waits
export function followQueue(panelOf, onlyTimes = false) {
    if (onlyTimes && (timer !== null || !shown.length)) return;
    clearTimeout(timer);
    const pause = onlyTimes ? MOST_OFTEN - (Date.now() - asked) : 0;
    timer = setTimeout(() => ask(panelOf), Math.max(pause, 50)); // events come in groups
}

async function ask(panelOf) {
    timer = null;
    asked = Date.now();
    const number = ++question;
    const answer = await api.fetchApi("/traintrain/waiting", { method: "POST" }).catch(() => null);
    if (!answer?.ok || number !== question) return;
    const { waiting } = await answer.json();
    const keys = new Set(waiting.map(keyOf));
    for (const gone of shown.filter((each) => !keys.has(keyOf(each)))) panelOf(gone)?.wait(null);
    for (const each of waiting) panelOf(each)?.wait(each);
    shown = waiting;
}

function keyOf({ workflow, node }) {
    return JSON.stringify([workflow, node]);
}
