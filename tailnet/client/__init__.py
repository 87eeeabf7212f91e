"""The tailnet for programs of one's own: dial a coordinator, speak its RPCs, learn where peers are.  Layer L3."""
