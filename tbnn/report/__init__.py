"""Reports: figures, tables and one self-contained HTML page about a trained network."""

from tbnn.report.data import ReportData, Sample, WeightPicture
from tbnn.report.page import render, write_page
from tbnn.report.raster import raster_figure
from tbnn.report.text import wilson

__all__ = ["ReportData", "Sample", "WeightPicture", "raster_figure", "render", "wilson", "write_page"]
