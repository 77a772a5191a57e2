// The block ids of each model family, as the server names them; tests/test_block_picker.py compares them with the models.

const number = (count, first = 0) => Array.from({ length: count }, (_, i) => String(first + i).padStart(2, "0"));

// A U-Net with three blocks a level. IN00 takes the latent and is never trained; `plain` blocks have convolutions but no
// attention.
function unet(levels, plain) {
    const ids = [...number(3 * levels - 1, 1).map((n) => `IN${n}`), "M00", ...number(3 * levels).map((n) => `OUT${n}`)];
    return { ids, plain };
}

function lists(counts) {
    return { ids: Object.entries(counts).flatMap(([name, count]) => number(count).map((n) => `${name}.${n}`)), plain: [] };
}

export const LAYOUTS = {
    "SD 1.5, SD 2": unet(4, ["IN03", "IN06", "IN09", "IN10", "IN11", "OUT00", "OUT01", "OUT02"]),
    SDXL: unet(3, ["IN01", "IN02", "IN03", "IN06", "OUT06", "OUT07", "OUT08"]),
    "SD 3, SD 3.5 Medium": lists({ joint_blocks: 24 }),
    "SD 3.5 Large": lists({ joint_blocks: 38 }),
    "Flux, Chroma": lists({ double_blocks: 19, single_blocks: 38 }),
    "Flux 2": lists({ double_blocks: 8, single_blocks: 48 }),
    "Flux 2 Klein 9B": lists({ double_blocks: 8, single_blocks: 24 }),
    "Flux 2 Klein 4B": lists({ double_blocks: 5, single_blocks: 20 }),
    "Lumina 2": lists({ context_refiner: 2, layers: 26, noise_refiner: 2 }),
    "Z-Image": lists({ context_refiner: 2, layers: 30, noise_refiner: 2 }),
    "Qwen-Image": lists({ transformer_blocks: 60 }),
    "Anima, Krea 2": lists({ blocks: 28 }),
    "Wan 1.3B, 5B": lists({ blocks: 30 }),
    "Wan 14B": lists({ blocks: 40 }),
};

// Returns the blocks of a layout that a network type trains: lierla (LoRA) trains only blocks with attention.
export function trainable(layout, networkType) {
    return networkType === "lierla" ? layout.ids.filter((id) => !layout.plain.includes(id)) : layout.ids;
}

// What a block is known to control, as keys of texts.js: in U-Nets the inner blocks control composition and shapes, the
// outer ones colors and textures (P+, Voynov et al. 2023); three blocks of SDXL are known individually (B-LoRA, Frenkel
// et al. 2024; InstantStyle, Wang et al. 2024). Nothing is established for other models.
const SINGLE = { SDXL: { IN08: "blocksComposition", OUT00: "blocksContent", OUT01: "blocksStyle" } };
const DEEP_LEVEL = { "SD 1.5, SD 2": 2, SDXL: 2 };

export function describe(name, id, level) {
    if (!(name in DEEP_LEVEL)) return null;
    return SINGLE[name]?.[id] ?? (level >= DEEP_LEVEL[name] ? "blocksDeep" : level === 0 ? "blocksOuter" : null);
}
