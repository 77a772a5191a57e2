// Shows the templates' notes and titles in the user's language: ComfyUI shows what a workflow's file says, and those of
// the pack are in English. A workflow whose notes have been changed is somebody's own, and stays as it is.

import { app } from "../../scripts/app.js";
import { ja } from "./template_texts_ja.js";
import { zh } from "./template_texts_zh.js";
import { language } from "./texts.js";

const NOTE = "MarkdownNote";
const TEXTS = { ja, zh };

// Translates a workflow of the page's format in place.
function translate({ nodes, groups = [] }, { notes, titles }) {
    for (const note of nodes.filter(({ type }) => type === NOTE)) note.widgets_values = [notes[note.widgets_values[0]]];
    for (const each of [...nodes, ...groups]) each.title = titles[each.title] ?? each.title;
}

app.registerExtension({
    name: "traintrain.TemplateTexts",

    beforeConfigureGraph(workflow) {
        const notes = workflow.nodes?.filter(({ type }) => type === NOTE) ?? [];
        const texts = TEXTS[language()];
        if (texts && notes.length && notes.every((note) => Object.hasOwn(texts.notes, note.widgets_values?.[0]))) translate(workflow, texts);
    },
});
