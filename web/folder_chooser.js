// Adds a folder chooser to nodes with a `folder` input: thumbnails of the folder, and a list of the folders that may be
// read. The text alone decides what is loaded.

import { api } from "../../scripts/api.js";
import { addElement, after, findWidget, follow, isWired, make, registerFor, setWidget } from "./node_element.js";
import { t } from "./texts.js";

const HEIGHTS = { thumbnails: 74, text: 18 }; // pixels: thumbnails with a line of text, or the text alone
const INPUT = ["keydown", "wheel", "pointerdown", "pointermove", "pointerup", "mousedown", "dblclick", "contextmenu"];
const TYPING = 300; // milliseconds after the last key

async function ask(route, body) {
    const answer = await api.fetchApi(`/traintrain/${route}`, { method: "POST", body: JSON.stringify(body) });
    if (answer.status === 404) return null;
    if (!answer.ok) throw new Error(`${route}: ${answer.status}`);
    return answer.json();
}

// Returns the thumbnails and counts of a folder, null if the server does not list it.
async function showFolder(name) {
    const { folders } = await ask("folders", {});
    return folders.some((folder) => folder.name === name) ? ask("thumbnails", { folder: name }) : null;
}

function countImages(count, below = 0) {
    const here = t(count === 1 ? "image" : "images", { count });
    const more = t("imagesBelow", { count: below });
    if (!below) return here;
    return count ? `${here} · ${more}` : more;
}

function drawThumbnails(strip, thumbnails) {
    strip.replaceChildren(...thumbnails.map((src) => make("img", "", { src, alt: "", draggable: false })));
}

// Shows thumbnails of the folder that the node names, and keeps them up to date.
function addStrip(node) {
    const strip = make("div", "strip");
    const words = make("div", "words");
    const open = () => choose(node, element);
    const shown = make("div", "shown", { title: t("folderChoose"), onclick: open }, strip, words);
    const element = make("div", "folder", {}, shown);
    const setHeight = addElement(node, "folder_strip", element, () => look());
    let asked = 0;
    let timer = null;
    let isNew = true; // created or loaded, and not shown since

    function show(text, thumbnails = []) {
        words.textContent = text;
        drawThumbnails(strip, thumbnails);
        strip.hidden = thumbnails.length === 0;
        setHeight(thumbnails.length ? HEIGHTS.thumbnails : HEIGHTS.text, isNew);
    }

    async function refresh() {
        const number = ++asked;
        if (isWired(node, "folder")) return show(t("folderWired"));
        const answer = await showFolder(findWidget(node, "folder").value.trim()).catch(() => ({}));
        if (number !== asked) return;
        if (answer === null) show(t("folderUnlisted"));
        else if (!answer.thumbnails) show(t("folderFailed"));
        else show(countImages(answer.count, answer.below), answer.thumbnails);
        isNew = false;
    }

    after(node, "onConfigure", () => (isNew = true));
    const look = follow(node, ["folder"], () => {
        clearTimeout(timer);
        timer = setTimeout(refresh, TYPING);
    });
    show(t("folderLoading"));
    look();
    return open;
}

// One folder of the list; its thumbnails are fetched when it scrolls into view.
function makeRow(folder, chosen, watch) {
    const strip = make("span", "strip");
    const name = make("b", "", {}, folder.name === "." ? t("folderRoot") : folder.name);
    const count = make("small", "", {}, countImages(folder.count, folder.below));
    const row = make("button", "row", { type: "button", value: folder.name }, make("span", "name", {}, name, count), strip);
    if (folder.name === chosen) row.classList.add("traintrain-chosen");
    row.fill = async () => drawThumbnails(strip, (await ask("thumbnails", { folder: folder.name }))?.thumbnails ?? []);
    watch.observe(row);
    return row;
}

function watchRows(root) {
    const watch = new IntersectionObserver(
        (seen) => {
            for (const { target } of seen.filter((entry) => entry.isIntersecting)) {
                watch.unobserve(target);
                target.fill().catch(() => {});
            }
        },
        { root },
    );
    return watch;
}

async function fillList(list, dialog, node) {
    const answer = await ask("folders", {}).catch(() => null);
    if (!answer) return list.replaceChildren(t("folderFailed"));
    const watch = watchRows(list);
    const rows = answer.folders.map((folder) => makeRow(folder, findWidget(node, "folder").value.trim(), watch));
    for (const row of rows) {
        row.onclick = () => {
            dialog.close();
            setWidget(node, "folder", row.value);
        };
    }
    list.replaceChildren(...(rows.length ? rows : [t("folderEmpty")]), ...(answer.complete ? [] : [t("folderMore")]));
    list.querySelector(".traintrain-chosen")?.scrollIntoView({ block: "nearest" });
}

// Opens the list of folders inside the node's element, not in the page's body, which is shared.
function choose(node, element) {
    if (isWired(node, "folder")) return;
    const list = make("div", "list", {}, t("folderLoading"));
    const close = make("button", "close", { type: "button", title: t("folderClose"), ariaLabel: t("folderClose") }, "✕");
    const head = make("div", "head", {}, make("b", "", {}, t("folderTitle")), close);
    const dialog = make("dialog", "dialog", { tabIndex: -1 }, head, make("p", "", {}, t("folderHint")), list);
    close.onclick = () => dialog.close();
    dialog.onclick = ({ target }) => target === dialog && dialog.close(); // outside of it
    for (const event of INPUT) dialog.addEventListener(event, (event) => event.stopPropagation()); // keeps the canvas from reacting
    dialog.onclose = () => dialog.remove();
    dialog.dataset.captureWheel = "true"; // lets the wheel scroll here while the dialog has the focus
    element.append(dialog);
    dialog.showModal();
    fillList(list, dialog, node);
}

registerFor("traintrain.Folders", ({ input }) => "folder" in (input.required ?? {}), {
    nodeCreated(node) {
        const button = node.addWidget("button", "choose_folder", null, () => open(), { serialize: false });
        button.label = t("folderChoose");
        button.serialize = false; // saved values are positional
        const open = addStrip(node);
    },
});
