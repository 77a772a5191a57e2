// Shows on Save LoRA which file it has written last: if the name was taken, it has a number.

import { addElement, after, make, registerFor } from "./node_element.js";
import { t } from "./texts.js";

const HEIGHT = 18; // pixels of the line

// Save LoRA is the pack's node that returns nothing but a path.
registerFor("traintrain.SavedFile", ({ output, output_node }) => output_node && output.join() === "STRING", {
    nodeCreated(node) {
        let line = null; // none before the first file, so that the node keeps its saved size
        after(node, "onExecuted", (shown) => {
            const [path] = shown?.text ?? [];
            if (!path) return;
            if (!line) {
                line = make("div", "words");
                addElement(node, "saved_file", make("div", "saved", {}, line))(HEIGHT);
            }
            const file = path.split(/[\\/]/).pop();
            line.textContent = t("savedAs", { file });
            line.title = path;
        });
    },
});
