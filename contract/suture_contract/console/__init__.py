"""What every command shares: groups that import late, exit codes, how results and errors are printed."""
