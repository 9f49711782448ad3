"""The conversation without a screen: what the full-screen application and the line mode share."""
