// Parses and writes the text of `blocks`, by the rules of trainer/blocks.py.

export const BASE = "BASE"; // the text encoder, which "all" does not include

const group = (id) => id.replace(/\d+$/, "");

function readPart(part, known) {
    if (part.toLowerCase() === "all") return known;
    if (part.toUpperCase() === BASE) return [BASE];
    const ends = part.split("-").map((end) => known.findIndex((id) => id.toLowerCase() === end.trim().toLowerCase()));
    return ends.length > 2 || ends.includes(-1) ? null : known.slice(ends[0], ends.at(-1) + 1);
}

// Returns the known blocks that a text selects, and the parts of the text that match none of them.
export function readBlocks(text, known) {
    const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
    if (!parts.length) parts.push("all");
    const chosen = new Set(parts[0].startsWith("-") ? known : []);
    const unknown = [];
    for (const part of parts) {
        const isExcluded = part.startsWith("-");
        const ids = readPart(isExcluded ? part.slice(1).trim() : part, known);
        if (ids === null) unknown.push(part);
        for (const id of ids ?? []) isExcluded ? chosen.delete(id) : chosen.add(id);
    }
    return { chosen, unknown };
}

// Joins three or more consecutive ids of one group into a range: IN04-IN08.
function joinRuns(ids, known) {
    const runs = [];
    for (const id of ids) {
        const run = runs.at(-1);
        const isNext = run && known.indexOf(id) === known.indexOf(run.at(-1)) + 1 && group(id) === group(run[0]);
        isNext ? run.push(id) : runs.push([id]);
    }
    return runs.flatMap((run) => (run.length > 2 ? [`${run[0]}-${run.at(-1)}`] : run));
}

// Returns the shortest text for these blocks, followed by the unknown parts, unchanged.
export function writeBlocks(chosen, known, unknown = []) {
    const named = joinRuns(known.filter((id) => chosen.has(id)), known);
    const left = joinRuns(known.filter((id) => !chosen.has(id)), known);
    const allBut = ["all", ...left.map((part) => `-${part}`)];
    const base = chosen.has(BASE) ? [BASE] : [];
    if (!named.length) return [...(base.length ? base : ["-all"]), ...unknown].join(", ");
    const shorter = allBut.join(", ").length < named.join(", ").length || !left.length ? allBut : named;
    return [...shorter, ...base, ...unknown].join(", ");
}
