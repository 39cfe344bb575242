"""The servers people use instead, set up as their own documentation says, measured beside clipserve."""
