"""Flash attention for TPUs with the gated prefix fused into it (Pallas, lowered by Mosaic)."""
