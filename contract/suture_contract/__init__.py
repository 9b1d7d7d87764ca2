"""What travels between parties, and what checks it: documents, models, cards, reports, errors. Without torch."""
