import sys

from suture_worker.run import main

if __name__ == "__main__":
    main(sys.argv[1:])
