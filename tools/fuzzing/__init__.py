"""Bad input of every kind, drawn by hypothesis: none of it may end ComfyUI, hang it, or write where it should not."""
