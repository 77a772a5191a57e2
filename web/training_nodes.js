// Adds the panel and the Stop and keep button to every training node: a node of the pack that returns losses.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode, isOpen, registerFor } from "./node_element.js";
import { TrainingPanel } from "./training_panel.js";
import { t } from "./texts.js";

const EVENTS = ["traintrain.step", "traintrain.end"];

const panels = new WeakMap(); // node -> its panel

function show(training) {
    if (isOpen(training.workflow)) panels.get(findNode(training.node))?.show(training);
}

// Shows trainings that started before the page or the workflow was opened.
async function catchUp() {
    const answer = await api.fetchApi("/traintrain/trainings", { method: "POST" }).catch(() => null);
    if (answer?.ok) (await answer.json()).trainings.forEach(show);
}

async function stop(node) {
    const training = panels.get(node)?.running;
    const answer = training
        ? await api.fetchApi("/traintrain/stop", { method: "POST", body: JSON.stringify({ node: training.node }) })
        : null;
    if (!answer?.ok) {
        const detail = t("trainingNone", { node: node.title });
        app.extensionManager.toast.add({ severity: "info", summary: t("trainingStop"), detail, life: 4000 });
    }
}

// Listens from now on, not from `setup`: the server may send the first event before.
for (const event of EVENTS) api.addEventListener(event, ({ detail }) => show(detail));

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
