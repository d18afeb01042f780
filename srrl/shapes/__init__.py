"""The embedded world: scenes of two coloured shapes, and the tiny pipeline that draws them."""
