"""From runs to conclusions: statistics, tables, plots and pages."""
