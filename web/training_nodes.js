// Adds the panel and the Stop and keep button to every training node: a node of the pack that returns losses.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode, isOpen, registerFor } from "./node_element.js";
import { TrainingPanel } from "./training_panel.js";
import { followQueue } from "./training_queue.js";
import { t } from "./texts.js";

const EVENTS = ["traintrain.step", "traintrain.end"];

const panels = new WeakMap(); // node -> its panel

// Returns the panel of the node that a message of the server is about, if it is on the canvas.
function panelOf({ workflow, node }) {
    return isOpen(workflow) ? panels.get(findNode(node)) : undefined;
}

function show(training) {
    panelOf(training)?.show(training);
}

function prepare(preparation) {
    panelOf(preparation)?.prepare(preparation);
}

// Shows trainings that started before the page or the workflow was opened.
async function catchUp() {
    const answer = await api.fetchApi("/traintrain/trainings", { method: "POST" }).catch(() => null);
    if (!answer?.ok) return;
    const { trainings, preparing } = await answer.json();
    trainings.forEach(show);
    if (preparing) prepare(preparing);
    followQueue(panelOf);
}

async function stop(node) {
    const training = panels.get(node)?.running;
    const answer = training
        ? await api.fetchApi("/traintrain/stop", { method: "POST", body: JSON.stringify({ node: training.node }) })
        : null;
    if (answer?.ok) panels.get(node).stop();
    else {
        const detail = t("trainingNone", { node: node.title });
        app.extensionManager.toast.add({ severity: "info", summary: t("trainingStop"), detail, life: 4000 });
    }
}

// Listens from now on, not from `setup`: the server may send the first event before.
for (const event of EVENTS) api.addEventListener(event, ({ detail }) => show(detail));
api.addEventListener("traintrain.prepare", ({ detail }) => prepare(detail));
for (const event of ["status", "traintrain.end"]) api.addEventListener(event, () => followQueue(panelOf));
for (const event of ["traintrain.step", "traintrain.prepare"]) api.addEventListener(event, () => followQueue(panelOf, true));

registerFor("traintrain.Training", ({ output }) => output.includes("LOSS_MAP"), {
    nodeCreated(node) {
        const button = node.addWidget("button", "stop_and_keep", null, () => stop(node), { serialize: false });
        button.label = t("trainingStop");
        button.tooltip = t("trainingStopHint");
        button.serialize = false; // saved values are positional
        panels.set(node, new TrainingPanel(node));
    },

    afterConfigureGraph: catchUp,
});
