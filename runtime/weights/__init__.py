"""A checkpoint's bytes: mapped, loaded onto a device, and routed experts in slots over host memory or disk."""
