"""Parameter-efficient tuning: methods that train few parameters beside a frozen model."""
