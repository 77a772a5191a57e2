// Adds the block map to LoRA Network. The map writes the text of `blocks` and shows what is typed there; the text alone
// decides what is trained.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { LAYOUTS, describe, trainable } from "./block_layouts.js";
import { BASE, readBlocks, writeBlocks } from "./block_text.js";
import { findModelFile } from "./model_file.js";
import { addElement, after, findNode, findWidget, follow, isOpen, isWired, make, registerFor, setWidget } from "./node_element.js";
import { t } from "./texts.js";
import { sayNetwork } from "./training_words.js";

// Layouts that the server reports: of the last training, and of the file that the workflow's loader names.
const TRAINED = "trained";
const MODEL = "model";
const PER_LEVEL = 3; // blocks of a U-Net at one size
const PER_ROW = 10; // blocks of a list
const HEIGHTS = { head: 26, unetRow: 21, row: 18, heading: 16, note: 18 }; // pixels

const pickers = new WeakMap(); // node -> its picker

function layoutOf(node) {
    const { traintrain_layout: name, traintrain_blocks: blocks, traintrain_model: model } = node.properties;
    if (name === MODEL && model?.ids.length) return { name, layout: { ids: [...model.ids], plain: [...model.plain] } };
    if (name === TRAINED && blocks?.length) return { name, layout: { ids: [...blocks].sort(), plain: [] } };
    const known = name in LAYOUTS ? name : Object.keys(LAYOUTS)[0];
    return { name: known, layout: LAYOUTS[known] };
}

// Returns the level (0 is the outermost) and the column of a U-Net's block; null for other blocks.
function placeInUnet(id, levels) {
    const [, side, index] = id.match(/^(IN|OUT|M)(\d+)$/) ?? [];
    if (!side) return null;
    if (side === "M") return { level: levels, column: "3 / span 3" };
    const level = Math.floor(index / PER_LEVEL);
    return side === "IN"
        ? { level, column: 1 + (index % PER_LEVEL) }
        : { level: levels - 1 - level, column: PER_LEVEL + 2 + (index % PER_LEVEL) };
}

class Picker {
    constructor(node) {
        this.node = node;
        this.select = make("select", "layout", { title: t("blocksLayout"), onchange: () => this.select.value === MODEL ? this.readModel() : this.setLayout(this.select.value) });
        this.base = make("button", "cell", { type: "button", title: t("blocksBase"), textContent: BASE });
        this.base.dataset.id = BASE;
        this.all = make("button", "cell", { type: "button", title: t("blocksAllHint"), textContent: t("blocksAll") });
        this.all.onclick = () => this.toggleAll(this.known);
        this.map = make("div", "map");
        this.note = make("div", "words");
        const head = make("div", "tools", {}, this.select, this.base, this.all);
        this.element = make("div", "blocks", {}, head, this.map, this.note);
        this.listen();
        this.setHeight = addElement(node, "block_map", this.element, () => this.look());
        after(node, "onConfigure", () => this.draw(true)); // no widget holds the layout
        this.look = follow(node, ["blocks", "network_type"], () => this.draw());
        this.draw(true);
    }

    // A press toggles a block; dragging on sets the blocks it passes to the same state.
    listen() {
        let paint = null;
        const cellAt = (event) => event.target.closest?.("[data-id]:not(:disabled)");
        this.element.addEventListener("pointerdown", (event) => {
            const cell = cellAt(event);
            if (event.button !== 0 || !cell) return;
            paint = !this.chosen.has(cell.dataset.id);
            this.choose([cell.dataset.id], paint);
        });
        this.element.addEventListener("pointerover", (event) => {
            const cell = cellAt(event);
            if (event.buttons === 1 && paint !== null && cell) this.choose([cell.dataset.id], paint);
            else if (event.buttons === 0) paint = null;
        });
        this.element.addEventListener("click", (event) => {
            const cell = event.detail === 0 && cellAt(event); // by keyboard
            if (cell) this.choose([cell.dataset.id], !this.chosen.has(cell.dataset.id));
        });
    }

    choose(ids, wanted) {
        for (const id of ids) wanted ? this.chosen.add(id) : this.chosen.delete(id);
        setWidget(this.node, "blocks", writeBlocks(this.chosen, this.known, this.unknown));
    }

    toggleAll(ids) {
        this.choose(ids, !ids.every((id) => this.chosen.has(id)));
    }

    setLayout(name, blocks = this.node.properties.traintrain_blocks) {
        this.node.properties.traintrain_layout = name;
        if (blocks) this.node.properties.traintrain_blocks = blocks;
        this.draw();
    }

    async readModel() {
        const file = findModelFile(this.node);
        const ask = { method: "POST", body: JSON.stringify(file) };
        const answer = file && (await api.fetchApi("/traintrain/blocks", ask).catch(() => null));
        if (!answer?.ok) {
            const detail = t("blocksNoModel");
            app.extensionManager.toast.add({ severity: "info", summary: t("blocksModel"), detail, life: 6000 });
            this.drawSelect(layoutOf(this.node).name);
            return;
        }
        this.node.properties.traintrain_model = await answer.json();
        this.setLayout(MODEL);
    }

    draw(isNew = false) {
        const { name, layout } = layoutOf(this.node);
        this.type = findWidget(this.node, "network_type").value;
        this.known = trainable(layout, this.type);
        Object.assign(this, readBlocks(findWidget(this.node, "blocks").value, this.known));
        const shape = JSON.stringify([name, layout.ids, this.known]);
        if (shape !== this.shape) this.drawMap(name, layout);
        this.shape = shape;
        this.mark();
        const note = this.describeState();
        this.note.textContent = this.note.title = note;
        this.note.hidden = !note;
        this.setHeight(HEIGHTS.head + this.mapHeight + (note ? HEIGHTS.note : 0), isNew);
    }

    mark() {
        const isWiredIn = isWired(this.node, "blocks");
        for (const cell of this.element.querySelectorAll("[data-id]")) {
            cell.setAttribute("aria-pressed", !isWiredIn && this.chosen.has(cell.dataset.id));
            cell.disabled = isWiredIn || (cell !== this.base && !this.known.includes(cell.dataset.id));
        }
        this.all.disabled = isWiredIn;
    }

    describeState() {
        if (isWired(this.node, "blocks")) return t("blocksWired");
        if (this.unknown.length) return t("blocksUnknown", { tokens: this.unknown.join(", ") });
        if (!this.chosen.size) return t("blocksNone");
        return this.size ? sayNetwork(this.size) : "";
    }

    drawMap(name, layout) {
        this.drawSelect(name);
        const isUnet = layout.ids.every((id) => placeInUnet(id, 0));
        this.map.replaceChildren(...(isUnet ? this.drawUnet(name, layout) : this.drawLists(layout)));
    }

    drawSelect(name) {
        const option = (value, text) => make("option", "", { value, textContent: text, selected: value === name });
        const trained = this.node.properties.traintrain_blocks ? [option(TRAINED, t("blocksTrained"))] : [];
        this.select.replaceChildren(...trained, option(MODEL, t("blocksModel")), ...Object.keys(LAYOUTS).map((each) => option(each, each)));
    }

    // IN goes down on the left, M00 is at the bottom, OUT goes up on the right; a row is one resolution of the latent.
    drawUnet(name, layout) {
        const indices = layout.ids.filter((id) => id !== "M00").map((id) => Number(id.match(/\d+/)[0]));
        const levels = Math.floor(Math.max(0, ...indices) / PER_LEVEL) + 1;
        const ids = name in LAYOUTS ? ["IN00", ...layout.ids] : layout.ids;
        const top = Math.min(...ids.map((id) => placeInUnet(id, levels).level));
        const cells = ids.map((id) => {
            const { level, column } = placeInUnet(id, levels);
            const cell = this.drawCell(id, id, this.hint(name, id, Math.min(level, levels - 1)));
            Object.assign(cell.style, { gridRow: level - top + 1, gridColumn: column });
            return cell;
        });
        this.mapHeight = (levels - top + 1) * HEIGHTS.unetRow;
        return [make("div", "unet", {}, ...cells)];
    }

    hint(name, id, level) {
        if (!this.known.includes(id)) return t("blocksIdle", { id, type: this.type });
        if (!(name in LAYOUTS)) return id;
        const size = level ? t("blocksSize", { id, scale: 2 ** level }) : t("blocksFullSize", { id });
        const known = describe(name, id, level);
        return known ? `${size}\n${t(known)}` : size;
    }

    drawLists(layout) {
        const lists = [...new Set(layout.ids.map((id) => id.replace(/\.\d+$/, "")))];
        this.mapHeight = 0;
        return lists.flatMap((list) => {
            const ids = layout.ids.filter((id) => id.startsWith(`${list}.`));
            const heading = make("button", "heading", { type: "button", title: t("blocksGroup", { id: list }) }, list);
            heading.onclick = () => !isWired(this.node, "blocks") && this.toggleAll(ids);
            this.mapHeight += HEIGHTS.heading + Math.ceil(ids.length / PER_ROW) * HEIGHTS.row;
            return [heading, make("div", "rows", {}, ...ids.map((id) => this.drawCell(id, id.split(".")[1], id)))];
        });
    }

    drawCell(id, text, hint) {
        const cell = make("button", "cell", { type: "button", textContent: text, title: hint });
        cell.dataset.id = id;
        return cell;
    }
}

api.addEventListener("traintrain.network", ({ detail }) => {
    const picker = isOpen(detail.workflow) && pickers.get(findNode(detail.node));
    if (!picker || !detail.blocks?.length) return;
    picker.size = detail.layers ? detail : null; // of the LoRA that was trained last, until the page is left
    picker.setLayout(TRAINED, detail.blocks);
});

registerFor("traintrain.Blocks", ({ output }) => output.includes("TRAINTRAIN_NETWORK"), {
    nodeCreated: (node) => pickers.set(node, new Picker(node)),
});
